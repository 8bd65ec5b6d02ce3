"""One base model, many LoRA adapters: which one is active, which ones learn.

PEFT's own `set_adapter` and `disable_adapter` also switch `requires_grad`, so a trained critic adapter would silently
stop learning after every look through the reference. Here being active and learning are two separate things.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

POLICY = "default"  # the name that TRL, PEFT and vLLM expect for the adapter that is trained and saved
REFERENCE = "reference"
CRITIC = "critic"


def adapter_layers(model: torch.nn.Module) -> list[BaseTunerLayer]:
    """The LoRA layers of `model`."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model without PEFT's wrapper; its layers have the adapters."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


@contextmanager
def use_adapter(model: torch.nn.Module, name: str | None) -> Iterator[None]:
    """Inside the block every part of the model that has adapters applies `name` (None: the raw base). Nothing else
    changes."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [name] if name is not None and _knows(layer, name) else []
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def _knows(layer: torch.nn.Module, name: str) -> bool:
    """LoRA layers pass over adapters that they have not; what replaces a module or rows of it as a whole does not."""
    if isinstance(layer, TrainableTokensLayer):
        return name in layer.token_indices
    return not isinstance(layer, AuxiliaryTrainingWrapper) or name in layer._get_available_adapters()


def train_only(model: PeftModel, adapters: Iterable[str], extra: Iterable[torch.nn.Parameter] = ()) -> None:
    """Makes the named adapters and the `extra` parameters trainable, and freezes every other one of `model`."""
    model.requires_grad_(False)
    names = set(adapters)
    for key, parameter in model.named_parameters():
        # LoRA parameters are called …lora_A.<adapter>.weight
        if "lora_" in key and names & set(key.split(".")):
            parameter.requires_grad_(True)
    for parameter in extra:
        parameter.requires_grad_(True)


def copy_adapter(model: PeftModel, source: str, target: str, dropout: float | None = None) -> None:
    """Adds the adapter `target` with the weights of `source` and its settings, but for `dropout` where it is given."""
    config = copy.copy(model.peft_config[source])
    if dropout is not None:
        config.lora_dropout = dropout
    config.init_lora_weights = True  # PiSSA and the like would change the base once more
    model.add_adapter(target, config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            # the adapter's name is the last part of an embedding's, and the last but one of all others
            parts = name.split(".")
            if target in parts[-2:]:
                parts[-2:] = [source if part == target else part for part in parts[-2:]]
                parameter.copy_(parameters[".".join(parts)])


def checkpoint_contexts(model: torch.nn.Module):
    """`context_fn` for activation checkpointing: the recomputation sees the adapter that the forward pass saw.

    Without it, the critic's activations would be recomputed through the policy's adapter in the backward pass.
    """
    layers = adapter_layers(model)

    def contexts():
        active = layers[0]._active_adapter
        return nullcontext(), use_adapter(model, active[0] if active else None)

    return contexts
