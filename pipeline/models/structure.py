"""What a language model is made of, seen on the model itself by letting two tokens through.

How wide it is where heads read, which of its modules a text passes, and which list of them is its stack of layers: a
config has many names for these, and none where a model projects in or out, or carries other parts beside the text.
"""

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.errors import UserError
from pipeline.models.adapters import base_of
from pipeline.safety.console import say


class Anatomy(NamedTuple):
    """What two tokens showed of a model."""

    width: int  # H of the last hidden states
    layers: nn.ModuleList  # the stack that a text passes; empty where there is none, or where one runs twice
    passes: Counter  # how often each module ran
    returned: dict[nn.Module, int]  # 0: a tensor; n: a tuple of n, the first of them a tensor; -1: anything else


def name_trunk(model: PreTrainedModel) -> None:
    """Sets the name under which TRL's fused head runs the decoder, where transformers gives one that no module has.

    A model of Llama 4's text alone calls it `language_model`, by which its weights stand in the files of the whole
    model, but has it as `model`; `base_model` would be the model with its head.
    """
    parts = [name for name, child in model.named_children() if isinstance(child, PreTrainedModel)]
    if model.base_model is model and len(parts) == 1:
        model.base_model_prefix = parts[0]


def trunk_of(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The decoder without its head, by the name under which TRL's fused head runs it."""
    return base_of(model).base_model


def kind_of(model: PreTrainedModel | PeftModel) -> str:
    """`path (model type)`, for errors."""
    base = base_of(model)
    return f"{base.name_or_path or 'the model'} ({base.config.model_type})"


def takes(module: nn.Module, name: str) -> bool:
    """Whether `forward` has an argument of that name."""
    return name in inspect.signature(module.forward).parameters


def positions(model: PreTrainedModel | PeftModel, mask: Tensor) -> dict[str, Tensor]:
    """`position_ids` (B, T), by which the first real token of a row stands at 0, for a model that takes them.

    Others have none, or count them from the mask by themselves.
    """
    if not takes(trunk_of(model), "position_ids"):
        return {}
    return {"position_ids": (mask.long().cumsum(dim=1) - 1).clamp(min=0)}


def last_logits(model: PreTrainedModel | PeftModel, count: int) -> dict[str, int]:
    """The argument for logits of the last `count` positions alone, for a model that takes it."""
    return {"logits_to_keep": count} if takes(base_of(model), "logits_to_keep") else {}


def look(model: PreTrainedModel | PeftModel) -> Anatomy:
    """Lets two tokens through, without a gradient and without drawing a random number.

    Raises:
        UserError: no hidden states come out for a text alone.
    """
    trunk, passes, returned = trunk_of(model), Counter(), {}

    def note(module: nn.Module, args: tuple, output) -> None:
        passes[module] += 1
        returned[module] = _form(output)

    hooks = [module.register_forward_hook(note) for module in trunk.modules()]
    ids = torch.ones(1, 2, dtype=torch.long, device=trunk.device)
    try:
        with torch.no_grad(), eval_mode(trunk), runs_on_text(model):
            states = trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return Anatomy(states.shape[-1], _stack(trunk, passes), passes, returned)


def _form(output) -> int:
    if isinstance(output, Tensor):
        return 0
    return len(output) if isinstance(output, tuple) and isinstance(output[0], Tensor) else -1


def _stack(trunk: nn.Module, passes: Counter) -> nn.ModuleList:
    """The list of modules with most weights of those that were passed, and at most once each."""
    lists = [
        m for m in trunk.modules() if isinstance(m, nn.ModuleList) and max((passes[x] for x in m), default=0) == 1
    ]
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=nn.ModuleList())


def is_product(layer: nn.Module) -> bool:
    """Whether a linear layer returns as much as the product with its weights. Routers of some mixtures of experts
    return more, and products by groups less, and PEFT, which goes by the type, cannot put an adapter on them."""
    if not isinstance(layer, nn.Linear) or type(layer).forward is nn.Linear.forward:
        return True
    whole = layer.weight.shape == (layer.out_features, layer.in_features) and layer.weight.is_floating_point()
    if not whole or layer.weight.is_meta:
        return True  # packed in 4 bits, or in shards elsewhere: nothing can be tried
    rows = torch.zeros(1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    with torch.no_grad(), eval_mode(layer):
        try:
            found = layer(rows)
        except (IndexError, RuntimeError, TypeError, ValueError):  # it takes other inputs
            return False
    return isinstance(found, Tensor) and found.shape == (1, layer.out_features)


def idle_layers(model: PreTrainedModel | PeftModel) -> dict[str, BaseTunerLayer]:
    """The layers with adapters that no text ever runs, by name: in a tower for images, in attention to an encoder.

    An expert is not one of them: the next text may be sent to it.
    """
    seen, modules = look(model), dict(base_of(model).named_modules())
    runs = {part for name, module in modules.items() if seen.passes[module] for part in _path(name)} | {""}
    found = {}
    for name, module in modules.items():
        if isinstance(module, BaseTunerLayer) and name not in runs:
            around = modules[[part for part in _path(name) if part in runs][-1]]
            if not isinstance(around, nn.ModuleList) or around is seen.layers:
                found[name] = module
    return found


def freeze_idle(model: PreTrainedModel | PeftModel) -> None:
    """Freezes the adapters that no text ever runs: DDP would wait for their gradients for ever."""
    idle = {
        name: layer for name, layer in idle_layers(model).items() if any(p.requires_grad for p in layer.parameters())
    }
    for layer in idle.values():
        layer.requires_grad_(False)
    if idle:
        names = list(idle)
        some = ", ".join(names[:2]) + (f" and {len(names) - 2:,} more" if len(names) > 2 else "")
        say(f"note: a text never runs {some} of {kind_of(model)}: their adapters stay as they are")


def _path(name: str) -> list[str]:
    """Of `a.b.c`: "", `a`, `a.b` and `a.b.c`."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def runs_on_text(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside, what a model wants besides a text, and each says in its own way, becomes a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{kind_of(model)} does not run on a text alone ({said:.200}): take a decoder of text"
        ) from None
