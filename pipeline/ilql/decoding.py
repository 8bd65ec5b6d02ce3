"""Decoding with the values: the policy's logits plus β (Q - V), Snell et al. 2022, arXiv 2206.11871.

The shift sits on the model's forward pass. What samples, takes the likeliest token or asks for log-probabilities then
sees one distribution, the shifted one; a LogitsProcessor would shift `generate` alone, and a KL would be that of
another policy. The values' own pass keeps its own cache beside that of the policy, so that a step costs two passes of
one token each.

    with shifted(model, load_shift(model, "runs/tiny/ilql/values", "values")):
        model.generate(...)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from transformers import DynamicCache

from pipeline.ilql import math
from pipeline.ilql.network import Heads, check_embeddings, embeddings_of, put_weights, read_settings
from pipeline.models.adapter_files import does_not_fit
from pipeline.models.adapters import use_adapter
from pipeline.models.structure import look, trunk_of

_READ = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
_CACHE = "_values_cache"  # on the policy's cache, so that both live and die together


class Shift(NamedTuple):
    """What is added to the logits: the values' adapter on the same base, their heads, and β."""

    adapter: str
    heads: Heads
    beta: float


def load_shift(model: PeftModel, folder: str | Path, name: str) -> Shift:
    """Puts the value network of `folder` on `model` as the adapter `name`.

    Raises:
        UserError: it is not whole, or of another base.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    check_embeddings(model, look(model).width)
    try:
        model.load_adapter(str(folder), adapter_name=name)
    except Exception as error:  # half a file fails in many ways
        raise does_not_fit(str(folder), model, error) from None
    heads = Heads(settings["hidden"])
    put_weights(model, folder, name, heads)
    return Shift(name, heads.to(model.device).eval().requires_grad_(False), settings["beta"])


@contextmanager
def shifted(model: PeftModel, shift: Shift | None) -> Iterator[None]:
    """Inside the block the model's logits have the shift; with None nothing changes."""
    if shift is None:
        yield
        return
    base, trunk = model.get_base_model(), trunk_of(model)

    @torch.no_grad()
    def add(module, args, kwargs, output):
        given = {name: kwargs[name] for name in _READ if kwargs.get(name) is not None}
        if args:
            given["input_ids"] = args[0]
        cache = output.get("past_key_values") if kwargs.get("use_cache", True) else None
        if cache is not None and not hasattr(cache, _CACHE):
            setattr(cache, _CACHE, DynamicCache(config=base.config.get_text_config()))
        with use_adapter(model, shift.adapter):
            own = getattr(cache, _CACHE, None)
            states = trunk(**given, past_key_values=own, use_cache=own is not None).last_hidden_state
        states = states[:, -output.logits.shape[1] :].float()
        shift.heads.to(states.device)
        with torch.autocast(states.device.type, enabled=False):
            q = torch.minimum(*shift.heads.q(states, embeddings_of(model)))
            output.logits = math.shifted(output.logits, q, shift.heads.values(states), shift.beta)
        return output

    hook = base.register_forward_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
