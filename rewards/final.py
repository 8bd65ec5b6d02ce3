"""The final answer in a completion, beside the answers that its row takes for right."""

import logging
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .base import Reward
from .text import Texts, text_of

logger = logging.getLogger(__name__)


class Final(Reward):
    """Base of the rewards that compare a final answer with a column.

    Args:
        column: the column with each row's right answer, or a list of them, any of which is right: texts or numbers.
        tag: the name of a tag; only what stands between the last `<tag>` and its `</tag>` is read.
        after: a text; only what stands behind its last occurrence is read, e.g. `</think>`.
    """

    def __init__(self, column: str, tag: str | None, after: str | None, log_name: str):
        super().__init__(log_name)
        if not isinstance(column, str) or not column:
            raise self.error(f"column is {column!r:.100}; give the name of a column.")
        self.column_name = column
        for option, value in (("tag", tag), ("after", after)):
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise self.error(f"{option} is {value!r:.100}; give a text, or leave it out.")
        if tag is not None and not re.fullmatch(r"\w[\w.-]*", tag):
            raise self.error(f"tag is {tag!r:.100}; give its name without brackets, e.g. answer for <answer>.")
        self.tag, self.after = tag, after

    def pairs(self, completions: Texts, columns: dict[str, Any]) -> list[tuple[list[str], str | None]]:
        """For each completion the right answers of its row, and the part that is read; None where there is no such
        part."""
        column = self.column(columns, self.column_name)
        return [
            (self.references(entry, row), self.part(text_of(completion)))
            for row, (completion, entry) in enumerate(zip(completions, column, strict=True))
        ]

    def references(self, entry: Any, row: int) -> list[str]:
        """The right answers in one entry of the column; empty ones and NaN, pandas' word for nothing, do not count. A
        mapping as in SQuAD holds them under `text`."""
        found = entry.get("text", entry) if isinstance(entry, Mapping) else entry
        found = found if isinstance(found, list | tuple) else [found]
        for answer in found:
            if answer is not None and not isinstance(answer, str | int | float):
                raise self.error(
                    f"column '{self.column_name}', row {row} of the batch, holds {_short(entry)}; "
                    "give a text, a number, or a list of them."
                )
        texts = [_text(answer).strip() for answer in found if answer is not None and answer == answer]
        return [text for text in texts if text]

    def part(self, text: str) -> str | None:
        """What is read of a completion."""
        if self.after is not None:
            _, found, text = text.rpartition(self.after)
            if not found:
                return None
        if self.tag is not None:
            before, closed, _ = text.rpartition(f"</{self.tag}>")
            _, opened, text = before.rpartition(f"<{self.tag}>")
            if not (closed and opened):
                return None
        return text

    def count(self, columns: Mapping[str, Any], **shares: float) -> None:
        """Logs figures of this call as `<reward>/<name>` where a trainer listens."""
        log_metric = columns.get("log_metric")
        if log_metric is not None:
            for name, share in shares.items():
                log_metric(f"{self.__name__}/{name}", share)


def _text(answer: str | int | float) -> str:
    """`answer` as one writes it: 4.0 as 4, 1e-05 as 0.00001."""
    if isinstance(answer, str | bool) or (isinstance(answer, float) and not math.isfinite(answer)):
        return str(answer)
    return f"{Decimal(int(answer) if answer == int(answer) else repr(float(answer))):f}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
