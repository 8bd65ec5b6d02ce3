"""What tokenizers do of their own accord at the ends of a text."""

import functools
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import processors

__all__ = ["adds_end", "begun_once", "open_ended"]


def open_ended(tokenizer: Any, also: Iterable[int] = ()) -> Any:
    """`tokenizer`, which from now on puts no end token behind what it reads; changed in place.

    A prompt that ended in the end token would be over before it is answered, and a text that has one would have two.
    What a tokenizer puts before a text stays, as do end tokens that stand in the text itself.

    Args:
        also: ids that end a text, besides the tokenizer's end-of-text token.
    """
    ends = {tokenizer.eos_token_id, *also}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        if backend.post_processor is None:
            return tokenizer
        state = json.loads(backend.post_processor.__getstate__())
        if (opened := _opened(state, ends)) != state:
            processor = processors.TemplateProcessing()  # takes the state of any kind
            processor.__setstate__(json.dumps(opened).encode())
            backend.post_processor = processor
            tokenizer._add_eos_token = False  # transformers makes the post-processor anew of it
    elif build := getattr(tokenizer, "build_inputs_with_special_tokens", None):
        if _ends_behind(build([-1]), ends):
            tokenizer.build_inputs_with_special_tokens = functools.partial(_without_end, build, ends)
    return tokenizer


def adds_end(tokenizer: Any) -> bool:
    """Whether `tokenizer` puts its end-of-text token behind what it reads."""
    alone, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return bool(alone) and whole[-1] == tokenizer.eos_token_id != alone[-1]


def begun_once(ids: list[int], tokenizer: Any) -> list[int]:
    """`ids` without the begin-of-text token that a tokenizer puts before a text that begins with one."""
    twice = [tokenizer.bos_token_id] * 2
    return ids[1:] if ids[:2] == twice else ids


def _opened(state: dict[str, Any], ends: set[int]) -> dict[str, Any]:
    """The state of a post-processor without the end tokens behind a single text."""
    kind = state["type"]
    if kind == "Sequence":
        return state | {"processors": [_opened(each, ends) for each in state["processors"]]}
    if kind in ("RobertaProcessing", "BertProcessing") and state["sep"][1] in ends:
        return _as_template(state)
    if kind != "TemplateProcessing":
        return state
    single = list(state["single"])
    ids_of = {name: set(token["ids"]) for name, token in state["special_tokens"].items()}
    while "SpecialToken" in single[-1] and ids_of[single[-1]["SpecialToken"]["id"]] <= ends:
        single.pop()
    return state | {"single": single}


def _as_template(state: dict[str, Any]) -> dict[str, Any]:
    """The post-processors of BERT's and RoBERTa's kind are always <cls> text <sep>: the same without the last."""
    special = {name: {"id": name, "ids": [id_], "tokens": [name]} for name, id_ in (state["cls"], state["sep"])}
    cls, sep = ({"SpecialToken": {"id": state[end][0], "type_id": 0}} for end in ("cls", "sep"))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    pair = [cls, first, sep, *([sep] if state["type"] == "RobertaProcessing" else []), second, sep]
    template = {"type": "TemplateProcessing", "single": [cls, first], "pair": pair, "special_tokens": special}
    if "trim_offsets" not in state:
        return template
    offsets = {"type": "ByteLevel", "use_regex": True}
    offsets |= {key: state[key] for key in ("add_prefix_space", "trim_offsets")}
    return {"type": "Sequence", "processors": [offsets, template]}


def _without_end(
    build: Callable[..., list[int]], ends: set[int], token_ids_0: list[int], token_ids_1: list[int] | None = None
) -> list[int]:
    if token_ids_1 is not None:
        return build(token_ids_0, token_ids_1)
    made = build(token_ids_0)
    added = _ends_behind(made, ends) - _ends_behind(token_ids_0, ends)
    return made[: len(made) - max(0, added)]


def _ends_behind(ids: list[int], ends: set[int]) -> int:
    return sum(1 for _ in itertools.takewhile(ends.__contains__, reversed(ids)))
