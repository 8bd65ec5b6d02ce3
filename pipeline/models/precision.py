"""In which precision a base is held and computes, and what is trained in float32 on it."""

import torch
from accelerate import PartialState
from peft import (
    PeftModel,
)
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import (
    BitsAndBytesConfig,
)

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from rewards.processor import has_units


def resolve_dtype(args: ModelArguments) -> torch.dtype:
    """The precision of the base weights; see `ModelArguments.dtype`."""
    if args.dtype != "auto":
        return getattr(torch, args.dtype)
    gpu = models_on_gpu() and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if gpu and args.use_peft else torch.float32


def compute_dtype(args: ModelArguments) -> torch.dtype:
    """In which the layers of a 4-bit base compute: the precision of the base, but float32 on a processor without units
    for that, which is many times faster there and takes no more memory to speak of (a layer's weights at a time).
    """
    dtype = resolve_dtype(args)
    return dtype if models_on_gpu() or has_units(dtype) else torch.float32


def models_on_gpu() -> bool:
    """Whether models of this process go to a CUDA GPU; with `use_cpu` they do not, though there may be one."""
    return torch.cuda.is_available() and (not PartialState._shared_state or PartialState().device.type == "cuda")


def quantization(args: ModelArguments) -> BitsAndBytesConfig | None:
    """The bitsandbytes settings, or None for an unquantised base."""
    if not (args.load_in_4bit or args.load_in_8bit):
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        key = "load_in_4bit" if args.load_in_4bit else "load_in_8bit"
        raise UserError(f"{key} needs bitsandbytes, which is not installed: pip install 'plumbline[quant]'") from None
    return BitsAndBytesConfig(
        load_in_4bit=args.load_in_4bit,
        load_in_8bit=args.load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=args.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=compute_dtype(args),
    )


def train_in_float32(model: torch.nn.Module) -> None:
    """Makes LoRA weights and score head float32 on a 16-bit or quantised base, where small updates would be lost.

    PEFT does so for LoRA weights but not for the head, and TRL casts both down to bfloat16 on a quantised base.
    """
    if not isinstance(model, PeftModel):
        return
    for parameter in model.parameters():
        # DeepSpeed ZeRO-3 (ds_id) holds all of its parameters in one precision.
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for head in module.modules_to_save.values():
                head.register_forward_pre_hook(_in_its_precision)


def _in_its_precision(layer: nn.Module, inputs: tuple) -> tuple:
    if not inputs[0].is_floating_point():  # ids, which embeddings read
        return inputs
    return inputs[0].to(next(layer.parameters()).dtype), *inputs[1:]
