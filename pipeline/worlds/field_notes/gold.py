"""The hidden referee of the field notes. It judges; it is never a training reward.

``gold = said^2 * 0.7^invented * 0.8^repeats * fluency * brevity``, each factor in [0, 1]:

- ``said``: share of the row's facts of which one wording occurs as whole words.
- ``invented``: number of values of the vocabulary that are mentioned but are not among the facts (a wrong value is
  both a fact not said and a value invented).
- ``repeats``: mentions of one fact after its first, words said twice in a row inside a sentence, and word trigrams
  that occurred before.
- ``fluency``: the square of the share of trigrams that the clean grammar can produce, times 0.85 for a sentence that
  does not begin with a capital and 0.85 for a text that does not end with a period. Trigrams are taken per sentence
  with both borders, over words and classes: whole phrases of the grammar ("at dusk", "by the old mill", "fishing")
  count as their class, "a"/"an" as an article only where it agrees with the next word. A bare keyword ("dusk") is no
  phrase, so a list of keywords has no known trigrams. Stock remarks are fluent.
- ``brevity``: min(1, natural / words)^2, natural = 7 + the words of the longest phrase of each fact.

A text of the clean grammar that says all facts scores 1.
"""

import re
from collections.abc import Mapping
from functools import cache

from .grammar import REMARKS, SLOTS, WORDS, phrases, skeletons

FRAME_WORDS = 7
_TOKEN = re.compile(r"\{\w+\}|@|[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]|_")
_SENTENCE = re.compile(r"[^.]*\.|[^.]+$")


@cache
def _mention_pattern() -> re.Pattern:
    """One expression for all wordings, longest first, so that "late in the afternoon" is one mention."""
    wordings = sorted(_wordings(), key=len, reverse=True)
    return re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, wordings)) + r")(?![\w-])", re.IGNORECASE)


@cache
def _wordings() -> dict[str, tuple[str, str]]:
    """wording -> (slot, value)."""
    return {w: (slot, value) for slot in SLOTS for value, words in WORDS[slot].items() for w in words}


def mentions(text: str) -> list[tuple[str, str]]:
    """The (slot, value) of each vocabulary wording in `text`, in order."""
    return [_wordings()[match[0].lower()] for match in _mention_pattern().finditer(text)]


@cache
def _phrase_classes() -> dict[tuple[str, ...], str]:
    """Words of a surface phrase -> its class, e.g. ("at", "dusk") -> "{time}"."""
    holes = ("animal", "mood", "doing", "place", "time", "weather", "weather_clause")
    return {
        tuple(phrase.split()): "{" + hole + "}"
        for hole in holes
        for value in WORDS["weather" if hole == "weather_clause" else hole]
        for phrase in phrases(hole, value)
    }


def _classes(words: list[str]) -> list[str]:
    """Replace phrases by their class, the longest first, and agreeing articles by "@"."""
    longest = max(map(len, _phrase_classes()))
    result, at = [], 0
    while at < len(words):
        for size in range(min(longest, len(words) - at), 0, -1):
            name = _phrase_classes().get(tuple(words[at : at + size]))
            if name:
                result.append(name)
                at += size
                break
        else:
            word, after = words[at], words[at + 1] if at + 1 < len(words) else ""
            agrees = word == ("an" if after[:1] in tuple("aeiou") else "a")
            result.append("@" if agrees and after.isascii() and after[:1].isalpha() else word)
            at += 1
    return result


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence; the capital at its start is taken away, other capitals stay and so match nothing."""
    found = []
    for sentence in _SENTENCE.findall(text):
        words = _TOKEN.findall(sentence)
        if words:
            first = words[0] if words[0] == "I" else words[0][:1].lower() + words[0][1:]
            found.append([first, *words[1:]])
    return found


def _trigrams(words: list[str]) -> list[tuple[str, ...]]:
    padded = ["<s>", *words, "</s>"]
    return list(zip(padded, padded[1:], padded[2:], strict=False))


@cache
def _known_trigrams() -> frozenset:
    known = set()
    for skeleton in skeletons():
        for words in _sentences(skeleton):
            known.update(_trigrams(words))
    for remark in REMARKS:
        for words in _sentences(remark):
            known.update(_trigrams(_classes(words)))
    return frozenset(known)


def natural_words(row: Mapping[str, str]) -> int:
    """Words that the row's facts need at most in the clean grammar."""
    total = FRAME_WORDS
    for slot in SLOTS:
        if row.get(slot):
            holes = ("weather", "weather_clause") if slot == "weather" else (slot,)
            total += max(len(phrase.split()) for hole in holes for phrase in phrases(hole, row[slot]))
    return total


def gold_parts(completion: str, row: Mapping[str, str]) -> dict[str, float]:
    """The parts of the judgement: said, invented (a count), repeats (a count), fluency, brevity; and gold itself.

    Args:
        completion: the text to judge.
        row: slot -> value; a missing or empty slot is not a fact. Other columns are ignored.
    """
    facts = {slot: row[slot] for slot in SLOTS if row.get(slot)}
    text = completion.strip()
    if not text or not facts:
        return {"said": 0.0, "invented": 0.0, "repeats": 0.0, "fluency": 0.0, "brevity": 0.0, "gold": 0.0}
    found = mentions(text)
    said = len(set(found) & set(facts.items())) / len(facts)
    invented = len(set(found) - set(facts.items()))
    words = [word.lower() for word in re.findall(r"[\w'’-]+", text)]
    doubles = sum(a.lower() == b.lower() for s in _sentences(text) for a, b in zip(s, s[1:], strict=False))
    triples = list(zip(words, words[1:], words[2:], strict=False))
    repeats = len(found) - len(set(found)) + doubles + len(triples) - len(set(triples))
    trigrams = [t for sentence in _sentences(text) for t in _trigrams(_classes(sentence))]
    fluency = (sum(t in _known_trigrams() for t in trigrams) / len(trigrams)) ** 2
    starts = [sentence.strip()[:1] for sentence in _SENTENCE.findall(text) if sentence.strip()]
    fluency *= 1.0 if all(start.isupper() for start in starts) else 0.85
    fluency *= 1.0 if text.endswith(".") else 0.85
    brevity = min(1.0, natural_words(facts) / max(1, len(words))) ** 2
    value = said**2 * 0.7**invented * 0.8**repeats * fluency * brevity
    return {
        "said": said,
        "invented": float(invented),
        "repeats": float(repeats),
        "fluency": fluency,
        "brevity": brevity,
        "gold": value,
    }


def gold(completion: str, row: Mapping[str, str]) -> float:
    """How well `completion` says the row's facts, 0 (garbage) to 1 (a clean reference). Formula: see the module."""
    return gold_parts(completion, row)["gold"]
