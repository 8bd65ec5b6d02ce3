"""Reward model: `accelerate launch recipes/reward.py --config recipes/tiny/reward.yaml [--setting value ...]`."""

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments, RewardStage
from pipeline.stages import reward_ensemble


def main() -> None:
    reward_ensemble.run(*cli.parse(ModelArguments, DataArguments, RewardStage))


if __name__ == "__main__":
    cli.launch(main)
