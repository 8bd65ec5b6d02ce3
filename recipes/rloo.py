"""TRL's own RLOO, to compare with PPO:
`accelerate launch recipes/rloo.py --config recipes/tiny/rloo.yaml [--setting value ...]`.
"""

from pipeline import cli
from pipeline.config import DataArguments, ModelArguments
from pipeline.exam.exam import RewardArguments
from pipeline.stages import trl_stage


def main() -> None:
    trl_stage.run(*cli.parse(ModelArguments, DataArguments, RewardArguments, trl_stage.RLOOStage))


if __name__ == "__main__":
    cli.launch(main)
