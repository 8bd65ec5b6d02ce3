"""What a setting means on the machine that it is read on: GPU or not, 16 bits or not."""

import os
from functools import cache

import psutil
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


def leave_busy_cores() -> None:
    """Takes no more threads than cores that are idle now, unless OMP_NUM_THREADS says how many.

    Beside another program, two threads on two cores are several times slower than one (docs/performance.md).
    """
    most = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or most == 1 or torch.cuda.is_available():
        return
    cores = psutil.cpu_count() or 1
    busy = cores * psutil.cpu_percent(0.2) / 100
    threads = max(1, min(most, round(cores - busy)))
    if threads < most:
        torch.set_num_threads(threads)
        say(
            f"note: other programs use {busy:.1f} of {cores} cores: this one takes {threads} (OMP_NUM_THREADS sets it)"
        )


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


def settle_dtype(dtype: str) -> str:
    """What `fast` means on this machine: bfloat16 where the GPU or the processor has units for it, else float32.

    Settled when the settings are read, so that a run's config.yaml says what it was trained in. Other names are kept.
    """
    if dtype != "fast":
        return dtype
    gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bfloat16" if gpu or processor.has_units(torch.bfloat16) else "float32"


@cache
def tell_cost(asked_for: str, dtype: torch.dtype) -> None:
    """Says once, on a processor without units for `dtype`, what the setting `asked_for` costs there."""
    if line := processor.note(asked_for, dtype):
        say(line)
