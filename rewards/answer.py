"""Short answers in words: the same as a reference, nearly the same, or the right letter."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .base import choice
from .final import Final
from .text import Texts, is_unspaced, is_word_char

MATCHES = ("exact", "normalized", "f1", "choice")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Answer(Final):
    """Whether a completion is one of the row's answers, from 0 to 1; the best over several.

        {name: answer, column: answers}
        {name: answer, column: answers, match: f1}
        {name: answer, column: letter, match: choice, after: </think>}

    A row without an answer scores None.

    Options:
        column ("answer"): the column with each row's right answer, or a list of them (texts or numbers).
        match ("normalized"):
            exact: the same text, but for white space around it;
            normalized: the same after SQuAD's normalization: no capitals, no ASCII punctuation (3.5 is 35: take `math`
                for numbers), no articles (a, an, the), single spaces; one of nothing else is compared as it is;
            f1: SQuAD's F1 of the words so normalized; in scripts without spaces each character is a word;
            choice: 1 for the right letter of several choices (see `letter_of`). The column holds letters, or the
                places of the right choices as whole numbers, counted from 0.
        choices ("ABCD"): the letters there are, for choice.
        tag, after (none): what alone is read of a completion (see `rewards/final.py`); one without it scores 0.

    Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", section 6.1, and its
    official evaluation script.
    """

    def __init__(
        self,
        column: str = "answer",
        match: str = "normalized",
        choices: Sequence[str] = "ABCD",
        tag: str | None = None,
        after: str | None = None,
        log_name: str = "answer",
    ):
        super().__init__(column, tag, after, log_name)
        self.match = choice(match, "match", MATCHES, log_name)
        self.choices = [str(letter) for letter in choices] if isinstance(choices, str | list | tuple) else []
        single = all(len(letter) == 1 and letter.isalnum() for letter in self.choices)
        if (
            len({letter.upper() for letter in self.choices}) != len(self.choices)
            or len(self.choices) < 2
            or not single
        ):
            raise self.error(f"choices is {choices!r:.100}; give two letters or more, each once, e.g. ABCD.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        return [self.score(given, right) for right, given in self.pairs(completions, columns)]

    def score(self, given: str | None, right: list[str]) -> float | None:
        """The score of one answer, the best over the right ones; None without any of them."""
        if not right:
            return None
        if given is None:
            return 0.0
        if self.match == "choice":
            return float(letter_of(given, self.choices) in right)
        return max(self._same(given, reference) for reference in right)

    def references(self, entry: Any, row: int) -> list[str]:
        found = super().references(entry, row)
        return [self._letter(text, row) for text in found] if self.match == "choice" else found

    def _same(self, given: str, right: str) -> float:
        if self.match == "exact":
            return float(given.strip() == right)
        if not normalized(right):  # an article or signs alone, like the letter A: any text without words would do
            return float(given.strip().lower() == right.lower())
        if self.match == "normalized":
            return float(normalized(given) == normalized(right))
        return token_f1(given, right)

    def _letter(self, text: str, row: int) -> str:
        places = {str(place): letter for place, letter in enumerate(self.choices)}
        if text in places and text not in self.choices:
            return places[text]
        bare = text.strip("()[]. ").upper()
        found = next((letter for letter in self.choices if letter.upper() == bare), None)
        if found is None:
            raise self.error(
                f"column '{self.column_name}', row {row} of the batch, holds {text[:80]!r}, which is none of "
                f"{', '.join(self.choices)} and no place among them; set choices."
            )
        return found


def normalized(text: str) -> str:
    """`text` as SQuAD compares it.

    >>> normalized("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(given: str, right: str) -> float:
    """SQuAD's F1 of the words that two texts share, as often as both have them, from 0 to 1; where one of them has no
    words, 1 if neither has."""
    said, wanted = _tokens(given), _tokens(right)
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))  # = 2 P R / (P + R)


def _tokens(text: str) -> list[str]:
    spaced = "".join(f" {c} " if is_unspaced(c) and is_word_char(c) else c for c in normalized(text))
    return spaced.split()


def letter_of(text: str, choices: Sequence[str]) -> str | None:
    r"""The letter that a text chooses, or None where that is not clear.

    The first of these that finds any: the last `\boxed{B}`; the last "answer is B", "answer: (B)"; the text's only
    line that begins with a letter and a bracket, point or colon, or is a letter alone; letters in brackets, (B). Where
    one finds several different letters nothing is chosen, but for the first two, where the last word counts. Letters
    count as they stand in `choices`: a small "a" is mostly an article.
    """
    letters = "".join(map(re.escape, choices))
    one = rf"(?:\*\*|\\text\{{)?[(\[]?([{letters}])(?![\w'])"
    rules = (  # *+ gives nothing back: runs of spaces would take cubic time
        (rf"\\boxed\{{\s*+{one}", True),
        (rf"\b(?i:answer)(?:\s++is)?\s*+:?\s*+(?:\*\*)?\s*+{one}", True),
        (rf"(?m)^[^\S\n]*+(?:\*\*)?[(\[]?([{letters}])(?:\*\*)?(?:[)\].:]|[^\S\n]*+$)", False),
        (rf"\(([{letters}])\)", False),
    )
    for rule, last in rules:
        if found := re.findall(rule, text):
            return str(found[-1]) if last or len(set(found)) == 1 else None
    return None
