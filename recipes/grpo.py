"""TRL's own GRPO, to compare with PPO:
`accelerate launch recipes/grpo.py --config recipes/tiny/grpo.yaml [--setting value ...]`.
"""

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments
from pipeline.exam.exam import RewardArguments
from pipeline.stages import trl_stage


def main() -> None:
    trl_stage.run(*cli.parse(ModelArguments, DataArguments, RewardArguments, trl_stage.GRPOStage))


if __name__ == "__main__":
    cli.launch(main)
