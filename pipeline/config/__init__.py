"""The settings of each stage: one dataclass for the model, one for the data, and TRL's own config with our defaults.

Every check names the setting that is wrong. YAML values bypass argparse's `choices`, so the checks live here.

May import: safety and below.
Begin with: arguments.py, then stages.py.
"""

from pipeline.config.arguments import DataArguments, ModelArguments
from pipeline.config.checks import (
    ATTENTION,
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_KWARGS,
    DTYPES,
    SELECTIVE,
    TRACKERS,
    WATCH,
    check,
    is_selective,
    mapping,
    say_once,
    setting,
    steps_for,
    steps_per_update,
)
from pipeline.config.machine import on_gpu, settle_bf16, settle_dtype, settle_mixed_precision, tell_cost
from pipeline.config.services import ServerSettings, check_vllm_server, trackers_of
from pipeline.config.stages import (
    DPOStage,
    GroupStage,
    GRPOStage,
    RewardStage,
    RLOOStage,
    RolloutDefaults,
    SFTStage,
    StageDefaults,
)

__all__ = [
    "DataArguments",
    "ModelArguments",
    "ATTENTION",
    "CHAT_TEMPLATE",
    "CHAT_TEMPLATE_KWARGS",
    "DTYPES",
    "SELECTIVE",
    "is_selective",
    "TRACKERS",
    "WATCH",
    "check",
    "mapping",
    "say_once",
    "setting",
    "steps_for",
    "steps_per_update",
    "on_gpu",
    "settle_bf16",
    "settle_mixed_precision",
    "settle_dtype",
    "tell_cost",
    "trackers_of",
    "ServerSettings",
    "check_vllm_server",
    "DPOStage",
    "GRPOStage",
    "GroupStage",
    "RLOOStage",
    "RewardStage",
    "RolloutDefaults",
    "SFTStage",
    "StageDefaults",
]
