"""Words, tokens and sentences, as the instructions count them."""

import re
import string

PUNCTUATION = string.punctuation
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

# A point after one of these ends no sentence; after a single letter, as in J. S. Bach, neither.
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st jr sr rev gen gov sen rep hon col capt lt sgt mt vs etc e.g i.e cf al approx dept est fig "
    "inc ltd co corp no vol pp ed eds ph.d u.s u.k a.m p.m b.a m.a".split()
)
# Each run of marks is tried once: otherwise a text of nothing but marks would take time by its length squared.
_END = re.compile(r"(?<![.!?…‽])[.!?…‽]++[\"'”’)\]}*_]*+(?=\s|$)|[。！？]++[」』”’）]*+")  # noqa: RUF001 (full width)
_LAST_WORD = re.compile(r"[^\s(\[{\"“‘*_]*$")
_WINDOW = 80  # characters that are looked at beside a mark


def words(text: str) -> list[str]:
    r"""The words of `text` as IFEval counts them: runs of letters, digits and underscores (`\w+`); don't is two."""
    return re.findall(r"\w+", text)


def bare(text: str) -> str:
    """`text` without ASCII punctuation."""
    return text.translate(_NO_PUNCTUATION)


def trimmed(text: str) -> str:
    """`text` without ASCII punctuation and blanks at its two ends."""
    return text.strip(PUNCTUATION + " ")


def sentences(text: str) -> list[str]:
    """The sentences of `text`, stripped, with their marks.

    A sentence ends at . ! ? or an ellipsis, with closing quotes and brackets, before white space, and at the full
    stops of Chinese and Japanese. A point after a common English abbreviation, a single letter or the number of a
    list's entry ends none, nor does an ellipsis before a small letter. A line break alone ends none: a heading
    without a mark goes with the sentence after it.

    IFEval counts with NLTK's Punkt, a trained model, and IFBench with a list of patterns; the three part ways at
    abbreviations, initials, numbered lists, ellipses and marks in a row (?! ends one sentence here, two there).
    """
    found, start = [], 0
    for end in _END.finditer(text):
        if end.end() == len(text) or _ends(text, start, end):
            found.append(text[start : end.end()].strip())
            start = end.end()
    rest = text[start:].strip()
    return found + [rest] if rest else found


def _ends(text: str, start: int, end: re.Match[str]) -> bool:
    """Whether the marks at `end` end the sentence that begins at `start`, where something follows."""
    marks = end.group().rstrip("\"'”’)]}*_")
    if marks == ".":
        before = text[max(0, end.start() - _WINDOW) : end.start()]
        word = _LAST_WORD.search(before[-(end.start() - start) :]).group().lower()  # type: ignore[union-attr]  # maybe ""
        alone = before.rpartition("\n")[2].strip()
        return not (word in _ABBREVIATIONS or (len(word) == 1 and word.isalpha() and word != "i") or alone.isdecimal())
    ellipsis = set(marks) <= {".", "…"}
    return not (ellipsis and text[end.end() : end.end() + _WINDOW].lstrip()[:1].islower())


# --- Penn Treebank's tokens -----------------------------------------------------------------------------------------
_MARKS = r"[;@#$%&?!()\[\]{}<>\"“”‘„«»…]"
_DIVIDES = r"[.]{2,}|--+|[:,](?!\d)"  # a comma in 1,000 and a colon in 10:30 do not
_PIECES = re.compile(rf"{_DIVIDES}|{_MARKS}|(?:(?!{_DIVIDES}|{_MARKS})\S)+")
_CLOSING = frozenset(')]}>"”’»')
_SUFFIXES = ("n't", "'s", "'m", "'d", "'ll", "'re", "'ve")
_TWO_IN_ONE = {"cannot": 3, "gonna": 3, "gotta": 3, "gimme": 3, "lemme": 3, "wanna": 3}


def tokens(text: str) -> list[str]:
    """The tokens of `text` in the manner of the Penn Treebank, as NLTK's `word_tokenize` has them.

    Marks are tokens, the point only at the end of a sentence; a hyphen is part of its word; don't is do and n't,
    cannot is can and not.

    Source: the Treebank's tokenization rules, https://www.cis.upenn.edu/~treebank/tokenization.html
    """
    return [token for sentence in sentences(text) for token in _of_sentence(sentence)]


def _of_sentence(sentence: str) -> list[str]:
    pieces = _PIECES.findall(sentence)
    last = next((i for i in reversed(range(len(pieces))) if pieces[i] not in _CLOSING), -1)
    found: list[str] = []
    for i, piece in enumerate(pieces):
        closing = "." if i == last and len(piece) > 1 and piece.endswith(".") and set(piece) != {"."} else ""
        found += [*_split(piece.removesuffix(closing)), *([closing] if closing else [])]
    return found


def _split(piece: str) -> list[str]:
    """A piece without its outer apostrophes and its ending, these as tokens of their own."""
    core = piece.strip("'")
    if not core:
        return [piece]
    before, _, after = piece.partition(core)
    size = next((len(end) for end in _SUFFIXES if core.lower().endswith(end) and len(core) > len(end)), 0)
    stem, ending = core[: len(core) - size], core[len(core) - size :]
    cut = _TWO_IN_ONE.get(stem.lower(), len(stem))
    return [*before, *(part for part in (stem[:cut], stem[cut:], ending) if part), *after]
