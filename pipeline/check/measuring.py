"""What every reward of a recipe says of every kind of completion, and what it costs to ask."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline.check.texts import times
from pipeline.exam.evaluation import question_about
from rewards import RewardError, Shaped, WeightedReward, every_in, log_name_of, prepare, raw
from rewards.asking import guarded
from rewards.text import word_ends

GROWTH = (4, 16, 64, 256)  # times the text, to see whether a score has an end
GROWTH_ROWS = 4
GROWTH_LENGTH = 100  # characters of a text that is said over and over: longer ones take minutes to score

Scores = list[float | None]


class Measured(NamedTuple):
    """What one reward says. Scores are those of training, but not normalized: that depends on what was seen before."""

    name: str
    weight: float
    normalized: bool  # in training
    scores: dict[str, Scores]  # by kind of completion
    failures: dict[str, str]  # kind -> why no row of it has a score
    seconds: float  # a completion
    growth: list[float]  # mean score of texts of these `GROWTH`; empty where it has none for one of them

    def mean(self, kind: str) -> float:
        """Of the rows that have a score; NaN where none has."""
        return mean(self.scores[kind])


def measure(
    rewards: Sequence[WeightedReward], rows: Sequence[dict[str, Any]], made: dict[str, list[str]], tokenizer: Any
) -> list[Measured]:
    """Asks every reward about every kind in `made`.

    Args:
        rows: with `prompt` and the columns that the rewards read; `made` has one completion for each of them.
        tokenizer: of the policy, for rewards that count tokens; None: they are told of none.

    Raises:
        RewardError: one that cannot be loaded, or fails on every row of the first kind.
    """
    prepare(reward for reward, _ in rewards)
    return [_measure(each, rows, made, tokenizer) for each in rewards]


def totals(measured: Sequence[Measured]) -> dict[str, Scores]:
    """The weighted sum for each completion, by kind; None where no reward has a score."""
    found: dict[str, Scores] = {}
    for kind in measured[0].scores:
        columns = [[(m.weight, score) for score in m.scores[kind]] for m in measured]
        found[kind] = [_sum(row) for row in zip(*columns, strict=True)]
    return found


def mean(scores: Sequence[float | None]) -> float:
    """Of those that are there; NaN without any."""
    known = [score for score in scores if score is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _sum(row: Sequence[tuple[float, float | None]]) -> float | None:
    known = [weight * score for weight, score in row if score is not None]
    return math.fsum(known) if known else None


def _measure(weighted: WeightedReward, rows, made: dict[str, list[str]], tokenizer: Any) -> Measured:
    reward, weight = weighted
    normalized = any(isinstance(part, Shaped) and part.stats for part in every_in(reward))
    function = guarded(raw(reward) if normalized else reward, log_name_of(reward))
    scores, failures, seconds = {}, {}, 0.0
    for number, (kind, texts) in enumerate(made.items()):
        question = _question(rows, texts, tokenizer)
        started = time.perf_counter()
        try:
            with _quiet(number > 0):
                scores[kind] = function(**question)
        except RewardError as error:
            if number == 0:
                raise
            scores[kind], failures[kind] = [None] * len(rows), str(error)
        seconds += time.perf_counter() - started
    base = made.get("reference") or made["prompt"]
    growth = list(_growth(function, rows[:GROWTH_ROWS], [_short(text) for text in base[:GROWTH_ROWS]], tokenizer))
    seconds /= len(made) * len(rows)
    return Measured(log_name_of(reward), weight, normalized, scores, failures, seconds, growth)


def _short(text: str) -> str:
    """The words of `text` that fit into `GROWTH_LENGTH`, or so many characters where the first one does not."""
    text = text.strip()
    ends = [end for end in word_ends(text[: GROWTH_LENGTH + 1]) if end <= GROWTH_LENGTH]
    return text[: ends[-1]] if ends else text[:GROWTH_LENGTH]


def _growth(function, rows, texts: list[str], tokenizer: Any) -> list[float]:
    means = []
    for count in GROWTH:
        try:
            with _quiet():
                means.append(mean(function(**_question(rows, [times(text, count) for text in texts], tokenizer))))
        except RewardError:  # too long for it, which is an end of its own kind
            return []
    return [] if any(map(math.isnan, means)) else means


def _question(rows, texts: list[str], tokenizer: Any) -> dict[str, Any]:
    question = question_about(rows, texts)
    if tokenizer is not None:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        question["completion_ids"] = [[*row, tokenizer.eos_token_id] for row in ids]
    return question


@contextmanager
def _quiet(yes: bool = True) -> Iterator[None]:
    """Without a line in the log for each row on which a reward fails: the table says it."""
    logger = logging.getLogger("rewards.asking")
    before, logger.disabled = logger.disabled, yes or logger.disabled
    try:
        yield
    finally:
        logger.disabled = before
