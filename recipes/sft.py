"""SFT: `accelerate launch recipes/sft.py --config recipes/tiny/sft.yaml [--setting value ...]`."""

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.stages import sft


def main() -> None:
    sft.run(*cli.parse(ModelArguments, DataArguments, SFTStage))


if __name__ == "__main__":
    cli.launch(main)
