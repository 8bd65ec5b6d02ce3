"""Wanted and unwanted words: which of them a completion says, and where."""

import functools
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from .base import Reward, RewardError, choice, number
from .text import Texts, is_unspaced, is_word_char, text_of
from .tokens import TokenEnds, TokenIds, pay

MODES = ("fraction", "all", "any")
# Typographic apostrophes and hyphens as the typed ones; the emoji/text variation selectors do not count.
_SAME = str.maketrans(
    {"\u2019": "'", "\u02bc": "'", "\u2010": "-", "\u2011": "-", "\u2212": "-", "\ufe0e": None, "\ufe0f": None}
)
_HYPHENS_AND_UNDERSCORE = "-_"
_BETWEEN_DIGITS = ".,:"
_ZWJ = "\u200d"  # joins several emoji into one
_HANGUL = (0x1100, 0xD7FF)  # Korean has spaces, but particles attach to the word


class Keyword(Reward):
    """Whether a completion says what it must and leaves out what it must not, from -1 to 1.

        score = share of the wanted keywords that are said - min(1, unwanted_cost * number of unwanted keywords said)

    The first term is 0 where nothing is wanted. A row that wants and forbids nothing scores None.

        {name: keyword, column: facts}
        {name: keyword, wanted: [please, thank you|thanks], unwanted: [sorry], mode: any}

    Options:
        wanted ([]): keywords for every row. An entry `a|b` means that either one counts.
        column (none): a column, or list of columns, with each row's own wanted keywords (a text, or a list of texts).
        unwanted ([]), unwanted_column (none): likewise, what must not be said.
        unwanted_cost (1.0): what each unwanted keyword that occurs costs, however often it occurs.
        mode ("fraction"): of the wanted keywords; `all` gives 1 only if every one is said, `any` if one is.
        whole_words (true): false also finds a keyword inside a longer word. Scripts without spaces and Korean
            have no whole words in this sense: there a keyword is always found inside the text.
        ignore_case (true): case does not count.

    A whole word is bounded so that what is found is what is meant: `smoking` is not said by "non-smoking", `can` not
    by "can't" but `Anna` by "Anna's", `5` not by "15", "5.2", "-5" or "5th", an emoji not by its other skin tones.
    Composed and decomposed letters, curly and straight apostrophes, and runs of spaces compare equal.
    """

    def __init__(
        self,
        wanted: str | Sequence[str] = (),
        column: str | Sequence[str] | None = None,
        unwanted: str | Sequence[str] = (),
        unwanted_column: str | Sequence[str] | None = None,
        unwanted_cost: float = 1.0,
        mode: str = "fraction",
        whole_words: bool = True,
        ignore_case: bool = True,
        log_name: str = "keyword",
    ):
        super().__init__(log_name)
        self.wanted = keywords_of(wanted, "wanted")
        self.unwanted = keywords_of(unwanted, "unwanted")
        self.columns = _names(column)
        self.unwanted_columns = _names(unwanted_column)
        self.unwanted_cost = number(unwanted_cost, "unwanted_cost", log_name)
        self.mode = choice(mode, "mode", MODES, log_name)
        self.whole_words = whole_words
        self.ignore_case = ignore_case
        if not (self.wanted or self.unwanted or self.columns or self.unwanted_columns):
            raise self.error("say what to look for: column, wanted, unwanted or unwanted_column.")
        if self.unwanted_cost < 0:
            raise self.error(f"unwanted_cost is {unwanted_cost}; it is subtracted, so give a number from 0 up.")

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float | None]:
        return [
            self.score(text_of(completion), *self.lists(columns, row)) for row, completion in enumerate(completions)
        ]

    def lists(self, columns: dict[str, Any], row: int) -> tuple[list[str], list[str]]:
        """The wanted and the unwanted keywords of one row, each once."""
        wanted, unwanted = list(self.wanted), list(self.unwanted)
        for name in self.columns:
            wanted += keywords_of(self.column(columns, name)[row], name)
        for name in self.unwanted_columns:
            unwanted += keywords_of(self.column(columns, name)[row], name)
        return list(dict.fromkeys(wanted)), list(dict.fromkeys(unwanted))

    def score(self, completion: str, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> float | None:
        """The score of one completion; None if there is neither a wanted nor an unwanted keyword."""
        if not wanted and not unwanted:
            return None
        said = len(self._earned(self._hits(completion, wanted), len(wanted)))
        share = said / len(wanted) if self.mode == "fraction" and wanted else float(said)
        return share - min(1.0, self.unwanted_cost * len(self._hits(completion, unwanted)))

    def token_rewards(
        self, prompts: Texts, completions: Texts, completion_ids: TokenIds, token_ends: TokenEnds, **columns: Any
    ) -> list[list[float] | None]:
        """Each wanted keyword's share at the token that completes it, once; what an unwanted one costs at its token.

        With `mode: all` the 1 is paid at the token that completes the last one, with `any` the first one. Unwanted
        keywords cost nothing more once they have cost 1. Shapes and arguments: `Instant.token_rewards`.
        """
        rows = zip(completions, completion_ids, token_ends, strict=True)
        paid = []
        for row, (completion, ids, ends) in enumerate(rows):
            text, (wanted, unwanted) = text_of(completion), self.lists(columns, row)
            score = self.score(text, wanted, unwanted)
            paid.append(pay(score, self._payments(text, wanted, unwanted), len(ids), ends))
        return paid

    def _payments(self, text: str, wanted: Sequence[str], unwanted: Sequence[str]) -> list[tuple[int, float]]:
        """(characters said by then, what they earn)."""
        earned = self._earned(self._hits(text, wanted), len(wanted))
        payments = [(end, 1 / len(wanted) if self.mode == "fraction" else 1.0) for end in earned]
        for count, end in enumerate(self._hits(text, unwanted)):
            so_far, now = (min(1.0, self.unwanted_cost * n) for n in (count, count + 1))
            payments.append((end, so_far - now))
        return payments

    def _earned(self, hits: list[int], wanted: int) -> list[int]:
        """Of the `hits`, in their order, those that pay."""
        if self.mode == "all":
            return hits[-1:] if len(hits) == wanted else []
        return hits[:1] if self.mode == "any" else hits

    def _hits(self, text: str, keywords: Sequence[str]) -> list[int]:
        """Where those of `keywords` that are said are complete, in the order of the text."""
        return sorted(end for keyword in keywords if (end := self.hit(text, keyword)) is not None)

    def hit(self, completion: str, keyword: str) -> int | None:
        """Where `keyword` is complete in `completion`: see `first_hit`."""
        return first_hit(completion, keyword, self.whole_words, self.ignore_case)


def first_hit(text: str, keyword: str, whole_words: bool = True, ignore_case: bool = True) -> int | None:
    """The number of characters of `text` after which `keyword` is first said, or None if it never is.

    For `a|b` the alternative that is complete first.

    >>> first_hit("a cat, a concatenation", "cat")
    5
    """
    folded = _fold(text, ignore_case)
    ends = [
        folded.ends[start + len(word) - 1]
        for part in keyword.split("|")
        if (word := _fold(part.strip(), ignore_case).text)
        if (start := _find(folded.text, word, whole_words)) is not None
    ]
    return min(ends, default=None)


def keywords_of(value: Any, where: str) -> list[str]:
    """A text, a number, a list of them or None as a list of keywords; blank ones are left out."""
    if value is None:
        return []
    listed = [value] if isinstance(value, str | int | float) else value
    if not isinstance(listed, Sequence) or not all(isinstance(x, str | int | float | None) for x in listed):
        raise RewardError(f"'{where}' must be a keyword or a list of keywords, not {value!r:.100}.")
    return [text for x in listed if x is not None and (text := str(x).strip())]


def _names(column: str | Sequence[str] | None) -> list[str]:
    names = [column] if isinstance(column, str) else column or []
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise RewardError(f"a column of 'keyword' must be a name or a list of names, not {column!r:.100}.")
    return list(names)


class _Folded(NamedTuple):
    text: str  # as it is compared
    ends: list[int]  # of each of its characters: where the character that it comes from ends in the original


@functools.lru_cache(maxsize=4096)
def _fold(text: str, ignore_case: bool) -> _Folded:
    """`text` as it is compared: composed letters, one kind of apostrophe and hyphen, single spaces, no case."""
    folded: list[str] = []
    ends: list[int] = []
    end = 0
    for cluster in _clusters(text):
        end += len(cluster)
        piece = " " if cluster.isspace() else unicodedata.normalize("NFC", cluster).translate(_SAME)
        if ignore_case:
            piece = unicodedata.normalize("NFC", piece.casefold())
        folded.append(piece)
        ends += [end] * len(piece)
    return _Folded("".join(folded), ends)


def _clusters(text: str) -> list[str]:
    """`text` cut so that what composes, and what counts as one space, stays together."""
    if unicodedata.is_normalized("NFC", text):
        pieces = list(text)
    else:
        pieces = []
        for char in text:
            joins = unicodedata.combining(char) or 0x1160 <= ord(char) <= 0x11FF  # accents; the inner Korean jamo
            if pieces and joins:
                pieces[-1] += char
            else:
                pieces.append(char)
    merged: list[str] = []
    for space, run in groupby(pieces, key=str.isspace):
        letters = list(run)
        merged += ["".join(letters)] if space else letters
    return merged


def _find(text: str, word: str, whole_words: bool) -> int | None:
    """Start of the first `word` in the folded `text`."""
    start = text.find(word)
    while start >= 0:
        if not whole_words or _stands_alone(text, start, start + len(word)):
            return start
        start = text.find(word, start + 1)
    return None


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] is no part of something longer."""
    before, after = text[:start][-2:], text[end : end + 2]
    first, last = text[start], text[end - 1]
    return not (
        _joined(before[-1:], first)
        or _joined(last, after[:1])
        or _linked(before[:-1], before[-1:], first)
        or _linked(last, after[:1], after[1:])
        or (_in_word(last) and _is_contraction(text, end))
        or (first.isdigit() and before[-1:] == "-" and not _in_word(before[:-1]))  # a minus sign
    )


def _in_word(char: str) -> bool:
    """Whether `char` belongs to a word that has an edge: a letter, digit or mark of a script with spaces."""
    return bool(char) and is_word_char(char) and not is_unspaced(char) and not _HANGUL[0] <= ord(char) <= _HANGUL[1]


def _joined(left: str, right: str) -> bool:
    """Whether there is no edge between two neighbours: letters of one word, or parts of one emoji."""
    if not left or not right:
        return False
    if _ZWJ in (left, right) or "\U0001f3fb" <= right <= "\U0001f3ff":  # joined emoji, skin tone
        return True
    return (_in_word(left) or unicodedata.category(right)[0] == "M") and _in_word(right)


def _linked(left: str, link: str, right: str) -> bool:
    """Whether `link` makes one word of its two neighbours: twenty-one, snake_case, 3.5, 10:30."""
    if not (link and _in_word(left) and _in_word(right)):
        return False
    digits = left.isdigit() and right.isdigit()
    return digits if link in _BETWEEN_DIGITS else link in _HYPHENS_AND_UNDERSCORE and not (digits and link == "-")


def _is_contraction(text: str, end: int) -> bool:
    """Whether an apostrophe at `end` goes on with the word (can't, we're); the possessive 's does not."""
    rest = text[end : end + 3]
    if rest[:1] != "'" or not _in_word(rest[1:2]):
        return False
    return rest[1] != "s" or _in_word(rest[2:3])
