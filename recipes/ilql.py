"""Implicit language Q-learning:
`accelerate launch recipes/ilql.py --config recipes/tiny/ilql.yaml [--setting value ...]`.
"""

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments
from pipeline.exam.exam import RewardArguments
from pipeline.ilql.config import ILQLStage
from pipeline.stages import ilql as stage


def main() -> None:
    stage.run(*cli.parse(ModelArguments, DataArguments, RewardArguments, ILQLStage))


if __name__ == "__main__":
    cli.launch(main)
