"""Whether the processor multiplies 16-bit numbers in units of its own, and what they cost where it does not.

Most laptops, desktops and older servers have none for bfloat16 and float16. PyTorch multiplies them all the same, up
to a hundred times slower than float32, so nothing may be computed in them there unless somebody asked for it.
"""

import os
import time

import torch
from torch import nn

# What cpuinfo calls such units: on x86, then on ARM
_UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
# The values of ONEDNN_MAX_CPU_ISA under which oneDNN still takes bfloat16, and computes it without such units
_WITHOUT = ("AVX512_CORE", "AVX512_CORE_VNNI")
_SIDE = 128  # rows and columns of the matrices that are multiplied to measure


def has_units(dtype: torch.dtype) -> bool:
    """Whether products of matrices of `dtype` are computed in it by this processor; 32 bits and more always are.

    The variables that keep PyTorch from using newer instructions (ONEDNN_MAX_CPU_ISA) are heeded: what counts is what
    is computed here, not what is printed on the chip.
    """
    if dtype not in _UNITS:
        return True
    if not torch.backends.mkldnn.is_available():  # without oneDNN nothing uses them
        return False
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{'bf16' if dtype == torch.bfloat16 else 'fp16'}_supported")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    found = torch.cpu.get_capabilities()
    return bool(supported()) and limit not in _WITHOUT and any(found.get(unit) for unit in _UNITS[dtype])


def note(setting: str, dtype: torch.dtype) -> str | None:
    """One line for those who asked for `dtype` by `setting`: what it costs on this processor, measured now; None
    where the processor has units for it.
    """
    if has_units(dtype):
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"note: {setting}: this processor has no {name} units, and a product of matrices takes "
        f"{_seconds(dtype) / _seconds(torch.float32):.0f} times as long as in float32 (measured now)"
    )


def _seconds(dtype: torch.dtype) -> float:
    """That a product of two matrices takes: milliseconds even in the slowest case."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one prepares
        started = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return best


def suited(model: nn.Module) -> nn.Module:
    """`model` on the CPU, whose precision nobody asked for: weights of 16 bits become float32 where the processor has
    no units for them.
    """
    for parameter in model.parameters():
        if not has_units(parameter.dtype):
            parameter.data = parameter.data.float()
    return model
