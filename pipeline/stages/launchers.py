"""Which stage runs under which launcher (docs/scale.md has the table); what is refused before anything is loaded."""

import os
from collections.abc import Callable

from pipeline.errors import UserError

_SHARDED = ("FSDP", "ZeRO-3")
_AROUND = "its critic's pass goes around the wrapper that gathers shared-out weights"
_EXAM = "its held-out prompts are answered, and its adapter is saved, without gathering shared-out weights"
# stage -> launcher -> why not
REFUSED = {
    "PPO": dict.fromkeys(_SHARDED, _AROUND),
    "GRPO": dict.fromkeys(_SHARDED, _EXAM),
    "RLOO": dict.fromkeys(_SHARDED, _EXAM),
}


def launcher_of(config) -> str:
    """What shares out the work: `one process`, `DDP`, `FSDP`, `ZeRO-1`, `ZeRO-2` or `ZeRO-3`.

    Args: config: the stage's settings, as resolved by transformers.
    """
    plugin = getattr(config, "deepspeed_plugin", None)
    if plugin is not None:
        return f"ZeRO-{plugin.zero_stage}"
    if config.fsdp_plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return "FSDP"
    return "DDP" if config.world_size > 1 else "one process"


def check(who: str, config) -> None:
    """Raises `UserError` when the stage `who` does not run under the launcher that it was started by."""
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


def held_out_before(trainer, resumed: bool) -> Callable[[], dict]:
    """Figures on the held-out rows before training; call what is returned after `train` to have them.

    Accelerate takes a model that was evaluated for one that it has wrapped: without the lines below DDP would never be
    put around it, and each process would train by itself. FSDP and DeepSpeed cannot be evaluated before they train,
    but at the start of training.
    """
    if trainer.eval_dataset is None:
        return dict
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.args.eval_on_start = not resumed
        return lambda: next((row for row in trainer.state.log_history if "eval_loss" in row), {})
    found = trainer.evaluate()
    if trainer.accelerator.num_processes > 1:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if getattr(model, "_is_accelerate_prepared", False):
            del model._is_accelerate_prepared
        trainer.accelerator._models.clear()
    return lambda: found


def shards_on_a_cpu() -> bool:
    """Whether FSDP and DeepSpeed share anything out on a CPU. (The tests make them.)"""
    return False
