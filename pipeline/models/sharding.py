"""Weights that are sharded over processes: under which launcher, who cannot run so, and how they are read.

docs/scale.md has the table of what runs under which launcher. Stages that sample share out the base alone
(shared_base.py); SFT and the reward model leave the whole model to Accelerate's FSDP, or to DeepSpeed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed

from pipeline.errors import UserError

# who trains adapters on a frozen base that other roles stand on, or that samples
ON_A_SHARED_BASE = ("PPO", "GRPO", "RLOO", "ILQL")
_ZERO3 = (
    "DeepSpeed divides adapters and heads too, which are read whole here, and its engine follows the passes of one "
    "model in one order, where the policy, others on its base and samples that end sooner take turns"
)
# Accelerate's settings of FSDP that are not for a shared base: variable of the launcher, name among the plugin's
# arguments, value, and what to do
_OTHER_FSDP = (
    ("FSDP_VERSION", "fsdp_version", "1", "set fsdp_version: 2, as FSDP 1 takes a layer and its adapter as one"),
    ("FSDP_OFFLOAD_PARAMS", "cpu_offload", "true", "set fsdp_offload_params: false, or each token moves the base"),
    (
        *("FSDP_ACTIVATION_CHECKPOINTING", "activation_checkpointing", "true"),
        "set fsdp_activation_checkpointing: false, and gradient_checkpointing: true in the recipe",
    ),
)


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
    if who in ON_A_SHARED_BASE and launcher in ("FSDP", "ZeRO-3"):
        _check_shared_base(who, launcher, config)
    elif launcher not in ("DDP", "one process") and config.device.type == "cpu" and not shards_on_a_cpu():
        raise UserError(
            f"{launcher} was asked for, but on a CPU Accelerate runs DDP instead: use recipes/accelerate/cpu2.yaml"
        )


def _check_shared_base(who: str, launcher: str, config) -> None:
    if launcher == "ZeRO-3":
        raise UserError(f"{who} does not run under ZeRO-3: {_ZERO3}. Use FSDP 2 (recipes/accelerate/fsdp.yaml).")
    plugin = config.fsdp_plugin_args or {}
    for variable, name, refused, instead in _OTHER_FSDP:
        if str(plugin.get(name, os.environ.get(variable, ""))).lower() == refused:
            raise UserError(f"{who} shares its base out by FSDP 2 in a way of its own: {instead}")
    if getattr(config, "use_transformers_continuous_batching", False):
        raise UserError(
            "use_transformers_continuous_batching does not run under FSDP, where processes sample in step: leave it "
            "out, or sample with vllm_server"
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
