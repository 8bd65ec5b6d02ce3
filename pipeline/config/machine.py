"""What a setting means on the machine that it is read on: GPU or not, 16 bits or not."""

import os
from functools import cache

import torch

from pipeline.safety.console import say
from rewards import processor


def gpu_asked_for() -> str | None:
    """By what the environment asks for a GPU; an accelerate file such as gpu.yaml or gpus.yaml comes as that."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if devices not in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES is {devices}"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")
    return f"mixed_precision is {precision} in the accelerate file" if precision != "no" and not on_cpu else None


def on_gpu(config) -> bool:
    """Whether a trainer with these settings runs on a CUDA GPU."""
    return torch.cuda.is_available() and not config.use_cpu


def settle_bf16(config) -> None:
    """Resolves `bf16: none` in a trainer's settings, before TRL does: on a GPU that has it, and nowhere else.

    TRL takes bf16 whenever fp16 is off, also on a CPU, where it is less exact and on most processors very slow.
    """
    if config.bf16 is None:
        config.bf16 = on_gpu(config) and torch.cuda.is_bf16_supported() and not config.fp16
    for key in ("bf16", "bf16_full_eval"):
        if getattr(config, key) and not on_gpu(config):
            tell_cost(f"{key}: true", torch.bfloat16)


def settle_mixed_precision(config) -> None:
    """On a CPU the settings alone say it. `mixed_precision` in an accelerate file that was written for GPUs would have
    its way there without a word."""
    if not on_gpu(config) and not config.bf16:
        config.mixed_precision = "no"


@cache
def tell_cost(asked_for: str, dtype: torch.dtype) -> None:
    """Says once, on a processor without units for `dtype`, what the setting `asked_for` costs there."""
    if line := processor.note(asked_for, dtype):
        say(line)
