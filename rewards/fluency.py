"""Rewards that need no reference: how long a completion is, and how much it repeats itself."""

from itertools import pairwise
from typing import Any

from .base import Reward, choice, number
from .text import Texts, located_words, text_of, words
from .tokens import TokenEnds, TokenIds, pay, settle

UNITS = ("words", "characters", "tokens")


class Length(Reward):
    """0 while the length lies between `min` and `max`; outside, minus the relative excess or lack, down to -1.

        score = -min(1, (length - max) / max)  above max
                -min(1, (min - length) / min)  below min

        {name: length, max: 40}    {name: length, min: 10, max: 30, unit: tokens}
        {name: length, column: source, max: 0.3}

    Options:
        min, max: the bounds, both included; one of them may be left out.
        column (none): a column with a text in each row, or `prompt`. The bounds are then multiples of that text's
            length: with max 0.3 a summary may be as long as three tenths of its source (the compression rate of
            summarization). A row where that text is empty scores None.
        unit ("words"): words (in scripts without spaces, characters), characters, or tokens: those that the policy
            sampled, end-of-text token included (from `completion_ids`).
    """

    def __init__(
        self,
        min: float | None = None,
        max: float | None = None,
        unit: str = "words",
        column: str | None = None,
        log_name: str = "length",
    ):
        super().__init__(log_name)
        self.min = None if min is None else number(min, "min", log_name)
        self.max = None if max is None else number(max, "max", log_name)
        self.unit = choice(unit, "unit", UNITS, log_name)
        self.column_name = column
        if column is not None and unit == "tokens":
            raise self.error("unit: tokens is for the completion alone; with column, count words or characters.")
        if self.min is None and self.max is None:
            raise self.error("give min, max or both.")
        if (self.min or 0) < 0 or (self.max is not None and (self.max <= 0 or self.max < (self.min or 0))):
            raise self.error(f"min is {min} and max is {max}; give 0 <= min <= max and max > 0.")

    def __call__(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds | None = None, **columns: Any
    ) -> list[float | None]:
        if self.unit == "tokens":
            if completion_ids is None:
                raise self.error("unit: tokens needs completion_ids; use words or characters outside a trainer.")
            return [self.score(len(ids)) for ids in completion_ids]
        lengths = [self.length(text_of(completion)) for completion in completions]
        if self.column_name is None:
            return [self.score(length) for length in lengths]
        of = [self.length(text) for text in self.texts(prompts, columns, self.column_name)]
        return [self.score(length / whole) if whole else None for length, whole in zip(lengths, of, strict=True)]

    def length(self, text: str) -> int:
        """The length of `text` in words or characters."""
        return len(words(text) if self.unit == "words" else text)

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]:
        """What each unit beyond `max` costs where it stands; a lack at the last token.

        Shapes and arguments: `Instant.token_rewards`.
        """
        scores = self(prompts, completions, completion_ids=completion_ids, **columns)
        rows = zip(scores, map(text_of, completions), completion_ids, token_ends, strict=True)
        if self.unit == "tokens":
            return [settle(self._costs(len(ids)), self.score(len(ids))) for _, _, ids, _ in rows]
        of = [1] * len(scores)
        if self.column_name is not None:
            of = [self.length(text) for text in self.texts(prompts, columns, self.column_name)]
        return [
            pay(score, self._payments(text, whole) if whole else (), len(ids), ends)
            for (score, text, ids, ends), whole in zip(rows, of, strict=True)
        ]

    def _payments(self, text: str, whole: int) -> list[tuple[int, float]]:
        """(where a unit ends, what it costs)."""
        in_words = self.unit == "words"
        ends = [end for _, end in located_words(text)] if in_words else range(1, len(text) + 1)
        return list(zip(ends, self._costs(len(ends), whole), strict=True))

    def _costs(self, length: int, whole: int = 1) -> list[float]:
        """What the 1st, 2nd, ... unit adds to the score by being beyond `max`."""
        lengths = [n / whole for n in range(length + 1)]
        excess = [0.0 if self.max is None or x <= self.max else self.score(x) for x in lengths]
        return [now - before for before, now in pairwise(excess)]

    def score(self, length: float) -> float:
        """The score of a completion of `length` units, or of that multiple of the column's length."""
        if self.max is not None and length > self.max:
            return -min(1.0, (length - self.max) / self.max)
        if self.min is not None and length < self.min:
            return -min(1.0, (self.min - length) / self.min)
        return 0.0


class Repetition(Reward):
    """Minus the share of n-grams that have occurred before in the same completion, from -1 to 0.

        score = -(1 - distinct n-grams / n-grams)

        {name: repetition, n: 3}

    Options:
        n (3): words in an n-gram (in scripts without spaces, characters). A completion with fewer scores 0.

    Source: seq-rep-n in Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", equation 10.
    """

    def __init__(self, n: int = 3, log_name: str = "repetition"):
        super().__init__(log_name)
        if number(n, "n", log_name) < 1 or int(n) != float(n):
            raise self.error(f"n is {n}; give a whole number from 1 up.")
        self.n = int(n)

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        return [self.score(text_of(completion)) for completion in completions]

    def score(self, completion: str) -> float:
        """The score of one completion."""
        ngrams = [ngram for ngram, _ in self._ngrams(completion)]
        return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]:
        """-1 / n-grams at each token that completes an n-gram said before.

        Shapes and arguments: `Instant.token_rewards`.
        """
        rows = zip(map(text_of, completions), completion_ids, token_ends, strict=True)
        return [pay(self.score(text), self._payments(text), len(ids), ends) for text, ids, ends in rows]

    def _payments(self, text: str) -> list[tuple[int, float]]:
        ngrams = self._ngrams(text)
        seen: set[tuple[str, ...]] = set()
        payments = []
        for ngram, end in ngrams:
            if ngram in seen:
                payments.append((end, -1 / len(ngrams)))
            seen.add(ngram)
        return payments

    def _ngrams(self, text: str) -> list[tuple[tuple[str, ...], int]]:
        """The n-grams of `text`, each with where it ends."""
        found = located_words(text)
        groups = [found[i : i + self.n] for i in range(len(found) - self.n + 1)]
        return [(tuple(word for word, _ in group), group[-1][1]) for group in groups]
