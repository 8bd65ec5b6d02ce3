"""DPO on preference pairs by TRL's own trainer, to compare with PPO:
`accelerate launch recipes/dpo.py --config recipes/tiny/dpo.yaml [--setting value ...]`.
"""

from pipeline import cli
from pipeline.config import DataArguments, DPOStage, ModelArguments
from pipeline.exam.exam import RewardArguments
from pipeline.stages import dpo


def main() -> None:
    dpo.run(*cli.parse(ModelArguments, DataArguments, RewardArguments, DPOStage))


if __name__ == "__main__":
    cli.launch(main)
