"""The completions that rewards are tried on, made of the data's own references and prompts."""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.errors import UserError
from rewards.base import nearest
from rewards.text import text_of, word_ends

COLUMNS = ("references", "reference", "completion", "chosen", "answer", "solution")  # looked for in this order
LONG = 4  # references in a `long` completion


class Kind(NamedTuple):
    """A kind of completion: its head in the table, and what it is in words."""

    head: str
    words: str


KINDS = {
    "reference": Kind("ref", "the row's reference"),
    "shuffled": Kind("other", "the reference of another row"),
    "empty": Kind("empty", "nothing"),
    "repeated": Kind("repeat", "the reference's first three words over and over, as long as it"),
    "truncated": Kind("half", "the first half of its words"),
    "long": Kind("long", f"the reference {LONG} times"),
    "prompt": Kind("prompt", "a copy of the prompt"),
}


def references_in(rows: Sequence[dict[str, Any]], column: str | None = None) -> tuple[str | None, list[str]]:
    """The column with the references and the text of each row, of several the first; "" where there is none.

    Args: column: which one it is; None: the first of `COLUMNS` that the rows have.

    Raises:
        UserError: they have no such column, or it holds no text.
    """
    there = list(rows[0])
    if column is not None and column not in there:
        raise UserError(f"--references {column}: the data has no such column{nearest(column, there)}")
    column = column or next((name for name in COLUMNS if name in there), None)
    if column is None:
        return None, []
    try:
        return column, [_text(row[column]) for row in rows]
    except (TypeError, AttributeError):
        raise UserError(f"the column {column} does not hold texts: name another one by --references") from None


def completions(prompts: Sequence[str], references: Sequence[str], seed: int = 0) -> dict[str, list[str]]:
    """The kind's name -> one completion a row. Without references those kinds that need none."""
    made = {"prompt": [prompt.strip() for prompt in prompts], "empty": [""] * len(prompts)}
    if not references:
        return made
    made |= {
        "reference": list(references),
        "shuffled": _shuffled(references, seed),
        "repeated": [_repeated(text) for text in references],
        "truncated": [_half(text) for text in references],
        "long": [times(text, LONG) for text in references],
    }
    return {kind: made[kind] for kind in KINDS}


def times(text: str, count: int) -> str:
    """`text`, `count` times."""
    return " ".join([text.strip()] * count)


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0]
    return str(value) if isinstance(value, int | float) else text_of(value)


def _shuffled(references: Sequence[str], seed: int) -> list[str]:
    """Each row gets the text of the row after it in a random order, or of the first one from there that differs."""
    order = random.Random(seed).sample(range(len(references)), len(references))
    texts = [references[i] for i in order]
    found = dict.fromkeys(order, "")
    for position, row in enumerate(order):
        others = texts[position + 1 :] + texts[:position]
        found[row] = next((text for text in others if text != references[row]), references[row])
    return [found[row] for row in range(len(references))]


def _repeated(text: str) -> str:
    ends = word_ends(text)
    if not ends:
        return text
    words = text[: ends[min(3, len(ends)) - 1]].strip()
    return times(words, max(2, round(len(text) / len(words))))


def _half(text: str) -> str:
    ends = word_ends(text)
    return text[: ends[len(ends) // 2 - 1]] if len(ends) > 1 else text[: len(text) // 2]
