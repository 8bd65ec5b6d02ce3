"""Dialogues written as one text, as in the HH files, read as messages, so that a model's chat template can write them.

``\\n\\nHuman: Hi.\\n\\nAssistant: Hello.`` becomes a turn of the user and a turn of the assistant.
"""

import re
from collections.abc import Callable
from typing import Any

from datasets import Dataset

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
    found = []
    for row in rows.select_columns(list(columns)):
        chosen, rejected = (messages_of(row[column] or "") for column in columns)
        if chosen and rejected and len(chosen) > 1 and chosen[:-1] == rejected[:-1]:
            if chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
                found.append({"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]})
    if not found:
        raise UserError(f"dataset {name}: no row is a pair of dialogues of the form {FORM} with one prompt")
    if len(found) < len(rows):
        log(f"{name}: {len(rows) - len(found):,} rows dropped: no two dialogues with one prompt")
    if kind == "sft":
        # An answer of nothing teaches nothing
        found = [{"messages": row["prompt"] + row["chosen"]} for row in found if row["chosen"][0]["content"]]
    elif kind == "prompts":
        found = [{"prompt": row["prompt"]} for row in found]
    return Dataset.from_list(found)
