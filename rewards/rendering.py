"""What a model reads of a row: the one place where messages go through a chat template, and texts to ids.

Whoever shows a prompt to a model asks here: the data check, rollouts, exams, rewards, evaluation, chat. Two columns of
a row speak to the template, as in TRL's SFTTrainer and RewardTrainer:

    chat_template_kwargs   what the template is given besides, such as {"enable_thinking": false}
    tools                  the functions that the model may call, as JSON schemas, or that list as JSON text
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .text import Message, Text, Texts
from .tokenizing import begun_once

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
NOTHING: Mapping[str, Any] = {}  # a row without such columns


class TemplateError(ValueError):
    """A chat template that does not take the messages; the words go on after "the chat template"."""


class NoTemplate(TemplateError):
    """There is no chat template at all."""


def options_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the row's columns give to `apply_chat_template`."""
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    return {"tools": tools or None, **(row.get("chat_template_kwargs") or {})}


def row_of(columns: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Of the columns that a reward is given, those of row `i` that speak to the template."""
    return {name: columns[name][i] for name in TEMPLATE_COLUMNS if columns.get(name) is not None}


def render(tokenizer: Any, messages: Sequence[Message], row: Mapping[str, Any] = NOTHING, **how: Any) -> str:
    """The messages as the chat template writes them.

    Args:
        row: with the columns of `TEMPLATE_COLUMNS`, if it has them.
        how: for `apply_chat_template`, such as add_generation_prompt.

    Raises:
        TemplateError: there is no template, or it does not take these messages.
    """
    if tokenizer.chat_template is None and how.get("chat_template") is None:
        raise NoTemplate("is missing")
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options_of(row), **how))
    except Exception as error:  # a template is a program: it may fail in any way
        roles = ", ".join(str(message.get("role")) for message in messages)[:200]
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TemplateError(f"does not take these messages ({roles}): {reason}") from error


def prompt_text(tokenizer: Any, prompt: Text, row: Mapping[str, Any] = NOTHING) -> str:
    """A prompt as the policy reads it: a text as it is, messages with the beginning of the answer's turn.

    It is TRL's form: its GRPOTrainer and SFTTrainer add the generation prompt whoever wrote last.
    """
    return prompt if isinstance(prompt, str) else render(tokenizer, prompt, row, add_generation_prompt=True)


def encode(tokenizer: Any, texts: Sequence[str], rendered: bool, **how: Any) -> list[list[int]]:
    """The ids of each text, with the special tokens that the tokenizer adds; a `rendered` one has its own already."""
    if not texts:
        return []
    ids = tokenizer(text=list(texts), add_special_tokens=not rendered, verbose=False, **how)["input_ids"]
    return ids if rendered else [begun_once(row, tokenizer) for row in ids]


def prompt_ids(tokenizer: Any, prompts: Texts, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The ids of prompts, texts and messages alike, each with the row that it stands in."""
    texts = [prompt_text(tokenizer, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    found: list[list[int]] = [[] for _ in texts]
    for rendered in (False, True):
        places = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str) != rendered]
        for i, ids in zip(places, encode(tokenizer, [texts[i] for i in places], rendered), strict=True):
            found[i] = ids
    return found
