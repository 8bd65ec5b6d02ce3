"""How many tokens the rows of a data set have, counted before a run: of a large one it would take minutes for all."""

import heapq

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.models.prompts import ids
from pipeline.watching.progress import counting

FIRST, LONGEST = 20_000, 200  # so many rows from the start, and so many of the others, those with the longest prompts
TOLD = 5_000  # rows between two looks at how far it is


def token_counts(
    rows: Dataset, kind: str, tokenizer: PreTrainedTokenizerBase, template: str | None, name: str
) -> list[int]:
    """Of the rows of `measured`; of a pair the longer one. `template`: chat template in place of the tokenizer's own.

    Raises:
        UserError: the chat template does not take a row of the data set `name`.
    """
    found: list[int] = []
    numbers = measured(rows, kind)
    with counting("rows whose tokens are counted", len(numbers)) as counted:
        for number in numbers:
            try:
                found.append(max(map(len, ids(rows[number], kind, tokenizer, template))))
            except UserError as error:
                raise UserError(f"dataset {name}, row {number + 1}: {error}") from None
            if len(found) % TOLD == 0:
                counted(TOLD)
    return found


def measured(rows: Dataset, kind: str) -> list[int]:
    """Rows whose tokens are counted: the first ones and, as no prompt may outgrow the context, the longest others."""
    first = list(range(min(FIRST, len(rows))))
    if kind != "prompts" or len(first) == len(rows):
        return first
    size = [len(str(prompt)) for prompt in rows.select(range(FIRST, len(rows)))["prompt"]]
    return first + [FIRST + i for i in heapq.nlargest(LONGEST, range(len(size)), key=size.__getitem__)]
