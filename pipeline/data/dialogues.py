"""Dialogues written as one text, as in the HH files, read as messages, so that a model's chat template can write them.

``\\n\\nHuman: Hi.\\n\\nAssistant: Hello.`` becomes a turn of the user and a turn of the assistant.
"""

import re
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from pipeline.data.exact_rows import from_rows
from pipeline.errors import UserError

ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
FORM = r"\n\nHuman: ... \n\nAssistant: ..."


def messages_of(text: str) -> list[dict[str, str]] | None:
    """The turns of `text` without the white space around them; None where it does not begin with a speaker.

    >>> messages_of("\\n\\nHuman: Hi.\\n\\nAssistant:")
    [{'role': 'user', 'content': 'Hi.'}, {'role': 'assistant', 'content': ''}]
    """
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        return None
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": ROLES[speaker], "content": said.strip()} for speaker, said in turns]


def are_pairs(rows: Dataset) -> bool:
    """Whether the rows are pairs of whole texts, as HH's are: `chosen` and `rejected` without a `prompt`."""
    return {"chosen", "rejected"} <= set(rows.column_names) and "prompt" not in rows.column_names


def as_messages(rows: Dataset, kind: str, name: str, log: Callable[[str], Any]) -> Dataset:
    """Rows with `chosen` and `rejected` dialogues as rows of messages of the `kind`; what is no dialogue is dropped.

    `preference`: prompt (what both share), chosen and rejected (their last turns). `prompts`: prompt. `sft`: messages,
    those of `chosen`.

    Raises:
        UserError: no such columns of text, or no row is a pair of dialogues that share all but the last turn.
    """
    columns = ("chosen", "rejected")
    if any(column not in rows.column_names or not isinstance(rows[0][column], str) for column in columns):
        raise UserError(
            f"dataset {name}: as_messages reads texts in the columns chosen and rejected (it has "
            f"{', '.join(rows.column_names)}); leave it out for other data"
        )
    pairs = (pair for row in rows.select_columns(list(columns)) if (pair := _pair(row)))
    found = from_rows(pairs)
    if found is None:
        raise UserError(f"dataset {name}: no row is a pair of dialogues of the form {FORM} with one prompt")
    if len(found) < len(rows):
        log(f"{name}: {len(rows) - len(found):,} rows dropped: no two dialogues with one prompt")
    if kind == "sft":  # an answer of nothing teaches nothing
        taught = from_rows({"messages": row["prompt"] + row["chosen"]} for row in found if row["chosen"][0]["content"])
        if taught is None:
            raise UserError(f"dataset {name}: every chosen answer is empty, so there is nothing to learn from")
        return taught
    return found.select_columns(["prompt"]) if kind == "prompts" else found


def _pair(row: dict[str, Any]) -> dict[str, list[dict[str, str]]] | None:
    """Prompt and last turns of two dialogues that share all but the last turn, which is the assistant's."""
    chosen, rejected = (messages_of(row[column] or "") for column in ("chosen", "rejected"))
    if not chosen or not rejected or len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        return None
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        return None
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
