"""Which rows of a data set have their tokens counted before a run: all of a large one would take minutes."""

import heapq

from datasets import Dataset

FIRST, LONGEST = 20_000, 200  # so many rows from the start, and so many of the others, those with the longest prompts


def measured(rows: Dataset, kind: str) -> list[int]:
    """Rows whose tokens are counted: the first ones and, as no prompt may outgrow the context, the longest others."""
    first = list(range(min(FIRST, len(rows))))
    if kind != "prompts" or len(first) == len(rows):
        return first
    size = [len(str(prompt)) for prompt in rows.select(range(FIRST, len(rows)))["prompt"]]
    return first + [FIRST + i for i in heapq.nlargest(LONGEST, range(len(size)), key=size.__getitem__)]
