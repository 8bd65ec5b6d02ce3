"""The referee of the ferry desk: reads an answer against its conversation. It judges; it is never a reward.

Each measure is 1 or 0 for an answer, so a mean is the share of answers that are

- ``coherent``: every value in the row's `facts` is said, no value that the customer does not want is said, and of the
  slots that are still open exactly one is asked for; none is asked for when all four are known;
- ``polite``: the answer opens with a courtesy, and no sentence is curt;
- ``fresh``: no sentence stands in an earlier answer of the conversation, or twice in this one;
- ``fluent``: every sentence is one of the desk's, with any values in it;
- ``good``: all four.
"""

import re
from collections.abc import Mapping
from functools import cache

from .words import (
    BOOKINGS,
    COURTESIES,
    CURT,
    CURT_QUESTIONS,
    FAREWELLS,
    NOTES,
    QUESTIONS,
    SLOTS,
    VALUES,
    sentences,
)

MEASURES = ("good", "coherent", "polite", "fresh", "fluent")
_CURT_SENTENCES = {*CURT, *(question for slot in SLOTS for question in CURT_QUESTIONS[slot])}


def measure(completion: str, row: Mapping) -> dict[str, float]:
    """The measures of one answer.

    Args:
        row: of a prompts file, with `prompt` (messages), `facts`, and a column for each slot ("" where it is open).
    """
    said = sentences(completion)
    before = {s for m in row["prompt"] if m["role"] == "assistant" for s in sentences(m["content"])}
    verdict = {
        "coherent": _says_what_is_wanted(completion, row) and _asks_what_is_open(said, row),
        "polite": bool(said) and said[0] in COURTESIES and not _CURT_SENTENCES.intersection(said),
        "fresh": bool(said) and len(set(said)) == len(said) and not before.intersection(said),
        "fluent": bool(said) and all(_is_a_sentence(sentence) for sentence in said),
    }
    verdict = {"good": all(verdict.values())} | verdict
    return {measure: float(verdict[measure]) for measure in MEASURES}


def _says_what_is_wanted(text: str, row: Mapping) -> bool:
    mentioned = set(_values().findall(text))
    return set(row["facts"]) <= mentioned <= {row[slot] for slot in SLOTS}


def _asks_what_is_open(said: list[str], row: Mapping) -> bool:
    open_slots = {slot for slot in SLOTS if not row[slot]}
    asked = [_asked().get(sentence, "?") for sentence in said if sentence.endswith("?")]
    return len(set(asked)) == 1 and set(asked) <= open_slots if open_slots else not asked


@cache
def _values() -> re.Pattern:
    return re.compile(r"\b(?:" + "|".join(value for slot in SLOTS for value in VALUES[slot]) + r")\b")


@cache
def _asked() -> dict[str, str]:
    """Question -> the slot that it asks for."""
    return {sentence: slot for slot in SLOTS for sentence in QUESTIONS[slot] + CURT_QUESTIONS[slot]}


@cache
def _trips() -> re.Pattern:
    """The sentences with a trip, whatever its values."""
    seats, place, day, boat = ("|".join(VALUES[slot]) for slot in SLOTS)
    seats = seats.removeprefix("one|")
    a_trip = (
        rf"(?:one seat|(?:{seats}) seats|a trip)(?: to (?:{place}))?(?: on (?:{day}))?(?: by the (?:{boat}) boat)?"
    )
    return re.compile("|".join(re.escape(frame).replace(r"\{\}", a_trip) for frame in NOTES + BOOKINGS))


def _is_a_sentence(sentence: str) -> bool:
    whole = {*COURTESIES, *FAREWELLS, *_CURT_SENTENCES, *_asked()}
    return sentence in whole or _trips().fullmatch(sentence) is not None
