"""Weights that are sharded over processes: under which launcher, who cannot run so, and how they are read.

docs/scale.md has the table of what runs under which launcher.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed

from pipeline.errors import UserError

_SHARDED = ("FSDP", "ZeRO-3")
_CRITIC = "its critic's forward pass goes around the wrapper that gathers sharded weights"
_EXAM = "its held-out prompts are answered, and its adapter is saved, without gathering sharded weights"
_Q = "its Q is made from the base's output embeddings, which are sharded there"
# who -> launcher -> why not
REFUSED = {
    "PPO": dict.fromkeys(_SHARDED, _CRITIC),
    "GRPO": dict.fromkeys(_SHARDED, _EXAM),
    "RLOO": dict.fromkeys(_SHARDED, _EXAM),
    "ILQL": dict.fromkeys(_SHARDED, _Q),
}


def launcher_of(config) -> str:
    """How the work is split: `one process`, `DDP`, `FSDP`, `ZeRO-1`, `ZeRO-2` or `ZeRO-3`.

    Args: config: the stage's settings, as resolved by transformers.
    """
    plugin = getattr(config, "deepspeed_plugin", None)
    if plugin is not None:
        return f"ZeRO-{plugin.zero_stage}"
    if config.fsdp_plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return "FSDP"
    return "DDP" if config.world_size > 1 else "one process"


def check_launcher(who: str, config) -> None:
    """Raises `UserError` when the stage or trainer `who` does not run under the launcher that it was started by."""
    launcher = launcher_of(config)
    if why := REFUSED.get(who, {}).get(launcher):
        raise UserError(
            f"{who} does not run under {launcher}: {why}. Use DDP (recipes/accelerate/gpus.yaml), ZeRO-2 "
            "(zero2.yaml), or load_in_4bit: true for a base that one GPU does not hold."
        )
    if launcher not in ("DDP", "one process") and config.device.type == "cpu" and not shards_on_a_cpu():
        raise UserError(
            f"{launcher} was asked for, but on a CPU Accelerate runs DDP instead: use recipes/accelerate/cpu2.yaml"
        )


def shards_on_a_cpu() -> bool:
    """Whether FSDP and DeepSpeed shard anything on a CPU. (The tests make them.)"""
    return False


@contextmanager
def read_whole() -> Iterator[None]:
    """Inside, ZeRO-3 does not shard a model's weights while they are read (Accelerate 1.15 has it so even with
    `zero3_init_flag: false`): the vocabulary is counted, and heads and adapters are put, on whole weights."""
    found = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = found
