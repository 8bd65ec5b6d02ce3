"""Implicit language Q-learning:
`accelerate launch recipes/ilql.py --config recipes/tiny/ilql.yaml [--setting value ...]`.
"""

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments
from pipeline.exam import RewardArguments
from pipeline.ilql import stage
from pipeline.ilql.config import ILQLStage


def main() -> None:
    stage.run(*cli.parse(ModelArguments, DataArguments, RewardArguments, ILQLStage))


if __name__ == "__main__":
    cli.launch(main)
