"""TRL's own GRPO, to compare with PPO:
`accelerate launch recipes/grpo.py --config recipes/tiny/grpo.yaml [--setting value ...]`.
"""

from pipeline import cli, trl_stage
from pipeline.config import DataArguments, ModelArguments
from pipeline.exam import RewardArguments


def main() -> None:
    trl_stage.run(*cli.parse(ModelArguments, DataArguments, RewardArguments, trl_stage.GRPOStage))


if __name__ == "__main__":
    cli.launch(main)
