"""A result to the Hub: `python recipes/push.py --run runs/tiny/ppo --repo account/name [--setting value ...]`."""

from pipeline import cli, hub


def main() -> None:
    hub.run(*cli.parse(hub.PushArguments))


if __name__ == "__main__":
    cli.launch(main)
