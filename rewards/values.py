"""What counts as the answer of a reward: the one rule for training, exams, evaluation, chat, `step` and explanations.

An answer is a list with one entry for each completion: a number, or None (or NaN) where there is nothing to score.
Tuples, one-dimensional arrays, tensors and pandas Series are lists too. Numbers are whatever Python can make a float
of and is no text: int, bool (1 or 0), numpy's and torch's scalars, Decimal, Fraction. Where each token is paid for,
an entry is a list of numbers in turn.

What has no order or no end (sets, dicts, generators), a text, a single number or an array with more dimensions, such
as the (N, 1) of a classifier's logits, is no answer: it is refused instead of being guessed at.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from .base import RewardError

_SHOWN = 80  # characters of an answer in an error


def read(
    answers: Any,
    count: int,
    got: str,
    row: Callable[[int], str] = "completion {}".format,
    tokens: bool = False,
    nan: Callable[[int], None] = lambda row: None,
    give: str = "return",
) -> list[Any]:
    """`answers` as a list of floats, of lists of floats (`tokens`) and of None.

    Args:
        count: completions that were asked about.
        got: the beginning of an error, e.g. "Reward 'bleu': it returned"; give: what it asks for, e.g. "return".
        row: what an error calls a completion.
        nan: is told of each row that has NaN, which becomes None.

    Raises:
        RewardError: it is no answer; one sentence.
    """
    if not (is_list(answers) or (tokens and getattr(answers, "ndim", None) == 2)):
        raise RewardError(f"{got} {describe(answers)}; {give} a list with one number for each completion.")
    if len(answers) != count:
        raise RewardError(f"{got} {len(answers)} scores for {count} completions; {give} one for each.")
    found: list[Any] = []
    for i, answer in enumerate(answers):
        if tokens and is_list(answer):
            numbers = [_number(x, i, got, row, give) for x in answer]
            value: Any = None if any(x is None or math.isnan(x) for x in numbers) else numbers
        else:
            number = _number(answer, i, got, row, give)
            value = None if number is None or math.isnan(number) else number
        if value is None and answer is not None:
            nan(i)
        found.append(value)
    return found


def is_list(value: Any) -> bool:
    """Whether `value` holds entries one after the other: a sequence that is no text, an array of one dimension."""
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes | bytearray | memoryview)
    return getattr(value, "ndim", None) == 1 and hasattr(value, "__len__")


def describe(value: Any) -> str:
    """A few words that show `value`, on one line."""
    shape = getattr(value, "shape", None)
    if shape is not None and len(shape):
        return f"a {type(value).__name__} of the shape {tuple(shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _number(value: Any, i: int, got: str, row: Callable[[int], str], give: str) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str | bytes | bytearray) or getattr(value, "ndim", None):
            raise TypeError
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError):
        raise RewardError(f"{got} {describe(value)} for {row(i)}; {give} a number, or None.") from None
