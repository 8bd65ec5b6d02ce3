"""Slot errors of a restaurant text: slots that are missing, wrong or invented against its meaning representation.

Patterns of this project's own, written while reading the training part only, in the spirit of the slot-error script
published with the cleaned E2E data (Dušek, Howcroft, Rieser 2019, "Semantic Noise Matters for Neural NLG"). A pattern
stands for a class of wordings; a value accepts every class that people use for it ("in the low price range" is said
both of cheap places and of those under £20). What people say without meaning a slot ("a great place", "serves food")
is no pattern. The error of the patterns on human references is measured in tests/worlds/test_worlds.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .slots import NAME, NEAR, Meaning, delexicalize, parse_mr


class SlotErrors(NamedTuple):
    """Slots of one text that are `missing`, `wrong` (said with another value) or `invented` (said, but not asked
    for).
    """

    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    invented: tuple[str, ...]

    @property
    def total(self) -> int:
        return len(self.missing) + len(self.wrong) + len(self.invented)


_BY = r"(?:(?:customers?|costumers?|consumers?|users?|overall)['’]?s? ?(?:service )?[ -]?)?"
_RATING = rf"{_BY}(?:rat(?:ed|ings?|es?)|rankings?|ranked|reviews?|reviewed|scores?|satisfaction)"
_PRICE = r"(?:pric(?:e[sd]?|ing)|cost)(?:[ -](?:range|point|rang)s?)?"
_IS = r"(?:is |are |was |of |as |at |it |in |a |an |the |very |quite |by customers |customers |being |from |range )*"
_CHILD = r"(?:famil(?:y|ies)|child(?:ren)?['’]?s?|kids?['’]?s?)"
_NOT = r"(?:\bnot|n['’]t|\bno|\bnon|\bnever|\bwithout|\bun)"


def _any(*patterns: str) -> str:
    return "|".join(patterns)


def _out_of_five(number: str, word: str) -> str:
    either = rf"(?:{number}|{word})"
    return _any(
        rf"\b{either}(?:[ -]out)?[ -]of[ -]?(?:a (?:possible )?)?(?:5|five)\b",
        rf"(?<!of )(?<!out )\b{either}[ -]?stars?\b",
        rf"{_RATING} {_IS}{either}\b(?![ ,]*(?:to|-|out 5))",
        rf"(?<!of )\b{either}[ -]rat",
    )


def _more_or_less(words: str, pounds: str) -> str:
    return rf"(?:{words}) ?£? ?(?:{pounds})\b(?! ?[-–])"


_LOW, _HIGH = "(?:low|poor|bad)", "(?:high|excellent|great)"
# slot -> class of wordings -> pattern, for lower-case text with the names as placeholders.
PATTERNS: dict[str, dict[str, str]] = {
    "eatType": {
        "coffee shop": _any(r"coffee[ -]?s?h?[io]p", r"coffee[ -]?house", r"\bcaf[eé]\b", r"\bcoffee\b"),
        "pub": r"\bpubs?\b",
        "restaurant": r"\brestaurant",
    },
    "food": {
        "Chinese": r"\bchinese\b",
        "English": _any(r"\benglish\b", r"\bbritish\b"),
        "French": r"\bfrench\b",
        "Indian": r"\bindian\b",
        "Italian": r"\bitalian\b",
        "Japanese": r"\bjapanese\b",
        "Fast food": r"\bfast[ -]?food\b",
    },
    "area": {
        "riverside": r"\briver",
        "city centre": _any(
            r"(?:cit(?:y|ies)|town)['’]?s?[ -]?cent(?:re|er)", r"cent(?:re|er)\.? of (?:the )?(?:city|town)"
        ),
    },
    "familyFriendly": {
        "no": _any(
            rf"{_NOT}[ -]+(?:\w+[ -]+){{0,3}}?{_CHILD}",
            rf"{_CHILD}[- ]+(?:un-?friendly|not |free)",
            rf"{_CHILD} (?:\w+ )?(?:is|are|be)(?: not|n['’]t)",
            r"adults?[ -]only",
            r"only (?:for )?adult",
            r"adult establish",
        ),
        "yes": _any(
            rf"{_CHILD}[ -]*(?:and \w+[ -])?friend",
            rf"friendly (?:for|to|with|towards) (?:the )?(?:\w+ )?{_CHILD}",
            rf"welcom\w+ (?:to )?(?:\w+ )?{_CHILD}",
            rf"{_CHILD} (?:are |is |with \w+ are )?(?:\w+ )?welcome",
            rf"(?:good|great|suitable|perfect|ideal|appropriate) for (?:\w+ )?{_CHILD}",
            rf"(?:allow|accept)s? (?:\w+ )?{_CHILD}",
        ),
    },
    "priceRange": {
        "low": _any(
            r"\bcheap", "inexpensive", "affordab", rf"\blow(?:er)?[ -]+{_PRICE}", rf"{_PRICE} {_IS}(?:low|cheap)"
        ),
        "mid": _any(r"\bmoderate(?:ly)?[ -]*expensive", r"\bmoderate(?:ly)?\b(?! rat)"),
        "average": _any(
            rf"\b(?:average|averagely)[ -]+{_PRICE}",
            rf"{_PRICE} {_IS}average",
            r"\bmid[- ]?range",
            rf"reasonabl\w+ {_PRICE}",
        ),
        "high": _any(rf"\bhigh(?:er)?[ -]+{_PRICE}", r"(?<!in)(?<!moderately )expensive", rf"{_PRICE} {_IS}high"),
        "<20": _more_or_less(
            "less than|less that|less|under|below|up to|lower than|cheaper than|no more than", "20|twenty"
        ),
        "20-25": r"£? ?\b20(?: pounds)? ?(?:-|–|to|and) ?£?25",
        ">30": _more_or_less(r"more than|more|over|above|upwards of|higher than|exceed\w*|greater than", "30|thirty"),
    },
    "rating": {
        "low": _any(
            rf"\b{_LOW}(?:ly|er|est)?[ -]+(?:\w+[ -])?{_RATING}",
            rf"{_RATING} {_IS}{_LOW}\b",
            r"\b(?:poor|low)[ -]quality",
        ),
        "average": _any(
            rf"\baverage(?:ly)?[ -]+(?:\w+[ -])?{_RATING}", rf"{_RATING} {_IS}average(?! pric)", "average quality"
        ),
        "high": _any(
            rf"\b{_HIGH}(?:ly|er|est)?[ -]+(?:\w+[ -])?{_RATING}",
            rf"{_RATING} {_IS}(?:high|excellent)(?! pric)",
            "high quality",
        ),
        "1": _out_of_five("1", "one"),
        "3": _out_of_five("3", "three"),
        "5": _out_of_five("5", "five"),
    },
}

# A text that says the class on the left is not also taken to say those on the right: "not family-friendly" has
# "family-friendly" in it.
OVERRULES = {
    "no": ("yes",),
    "<20": ("low", "mid", "average"),
    "20-25": ("mid", "average", "low", "high"),
    ">30": ("high", "mid", "average"),
    "average": ("mid",),
    "low": ("mid",),
    "high": ("mid",),
    "1": ("low", "average"),
    "3": ("average", "high", "low"),
    "5": ("high", "average"),
}

# slot -> value -> classes that people use for it. A value that is not listed accepts the class of its own name.
ACCEPTED: dict[str, dict[str, tuple[str, ...]]] = {
    "priceRange": {
        "cheap": ("low",),
        "moderate": ("mid", "average"),
        "high": ("high",),
        "less than £20": ("<20", "low"),
        "£20-25": ("20-25", "average", "mid"),
        "more than £30": (">30", "high"),
    },
    "rating": {
        "low": ("low", "1"),
        "average": ("average", "3"),
        "high": ("high", "5"),
        "1 out of 5": ("1", "low"),
        "3 out of 5": ("3", "average"),
        "5 out of 5": ("5", "high"),
    },
}

# Where the data gives these slots two values, people say one of them (121 of 124 texts in the training file).
EITHER = frozenset({"priceRange", "rating", "familyFriendly"})

_COMPILED = {slot: {kind: re.compile(p) for kind, p in kinds.items()} for slot, kinds in PATTERNS.items()}


def said_classes(text: str) -> dict[str, set[str]]:
    """slot -> classes of wordings that `text` has. `text` is delexicalized (placeholders NAME and NEAR)."""
    text = re.sub(r"\s+", " ", text).lower()
    found = {}
    for slot, kinds in _COMPILED.items():
        classes = {kind for kind, pattern in kinds.items() if pattern.search(text)}
        overruled = {weaker for kind in classes for weaker in OVERRULES.get(kind, ()) if weaker in kinds}
        found[slot] = classes - overruled
    return found


def _judge(slot: str, wanted: Sequence[str], said: set[str], accepted: Mapping[str, tuple[str, ...]]) -> str | None:
    """ "missing", "wrong", "invented" or None for one slot."""
    if not wanted:
        return "invented" if said else None
    if not said:
        return "missing"
    allowed = [set(accepted.get(value, (value,))) for value in wanted]
    every_value_said = (any if slot in EITHER else all)(classes & said for classes in allowed)
    nothing_else_said = said <= set().union(*allowed)
    return None if every_value_said and nothing_else_said else "wrong"


def slot_errors(text: str, mr: str | Meaning) -> SlotErrors:
    """Compare `text` with the meaning representation `mr` (a string of the data, or parsed).

    The text may hold the names or their placeholders. Each slot counts at most once.

    Raises:
        UserError: `mr` cannot be read.
    """
    meaning = parse_mr(mr) if isinstance(mr, str) else mr
    text = delexicalize(text, meaning)
    found: dict[str, list[str]] = {"missing": [], "wrong": [], "invented": []}
    for slot, placeholder in (("name", NAME), ("near", NEAR)):
        has = re.search(rf"\b{placeholder}\b", text) is not None
        if has != (slot in meaning):
            found["invented" if has else "missing"].append(slot)
    said = said_classes(text)
    for slot in PATTERNS:
        verdict = _judge(slot, meaning.get(slot, []), said[slot], ACCEPTED.get(slot, {}))
        if verdict:
            found[verdict].append(slot)
    return SlotErrors(*(tuple(found[kind]) for kind in ("missing", "wrong", "invented")))
