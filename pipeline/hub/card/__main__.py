"""`python -m pipeline.card`: writes the card of a run again."""

from pipeline import cli
from pipeline.errors import UserError
from pipeline.hub.card import CardArguments, write_card
from pipeline.safety.console import say


def main() -> None:
    (args,) = cli.parse(CardArguments)
    if not args.run:
        raise UserError("run is not set: name the folder of the run, e.g. --run runs/tiny/ppo")
    say(f"{write_card(**vars(args))}")


if __name__ == "__main__":
    cli.launch(main)
