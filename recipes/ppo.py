"""PPO: `accelerate launch recipes/ppo.py --config recipes/tiny/ppo.yaml [--setting value ...]`."""

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments
from pipeline.stages import ppo as stage


def main() -> None:
    stage.run(*cli.parse(ModelArguments, DataArguments, stage.RewardArguments, stage.PPOStage))


if __name__ == "__main__":
    cli.launch(main)
