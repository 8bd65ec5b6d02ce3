"""Recipes, and the settings that each one takes."""

from pathlib import Path

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage

ROOT = Path(__file__).resolve().parents[2]


def settings_for(stage: str) -> tuple[type, ...]:
    """The dataclasses that recipes/<stage>.py parses."""
    if stage == "sft":
        return ModelArguments, DataArguments, SFTStage
    if stage == "reward":
        return ModelArguments, DataArguments, RewardStage
    if stage == "ppo":
        from pipeline.ppo.config import PPOStage
        from pipeline.stages.ppo import RewardArguments

        return ModelArguments, DataArguments, RewardArguments, PPOStage
    if stage in ("grpo", "rloo"):
        from pipeline.config import GRPOStage, RLOOStage
        from pipeline.exam.exam import RewardArguments

        return ModelArguments, DataArguments, RewardArguments, GRPOStage if stage == "grpo" else RLOOStage
    if stage == "dpo":
        from pipeline.config import DPOStage
        from pipeline.exam.exam import RewardArguments

        return ModelArguments, DataArguments, RewardArguments, DPOStage
    if stage == "ilql":
        from pipeline.exam.exam import RewardArguments
        from pipeline.ilql.config import ILQLStage

        return ModelArguments, DataArguments, RewardArguments, ILQLStage
    from pipeline.worlds.base import WorldSettings  # recipes/base.py

    return (WorldSettings,)
