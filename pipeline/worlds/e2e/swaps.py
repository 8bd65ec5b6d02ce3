"""The same text of another meaning representation: a value said otherwise, or a sentence left out.

A frame is a row of wordings that stand in the same place of a sentence, one for each value. Where a text has the
wording of its value, that of another value can take its place: ``a high customer rating`` becomes ``a low customer
rating``, and the meaning representation changes with it. The results serve twice: as more texts to learn from, and as
pairs that differ in one slot and nothing else for the reward model.
"""

import random
import re

from .errors import slot_errors
from .slots import Meaning

_FOODS = ("Chinese", "English", "French", "Indian", "Italian", "Japanese")
_AREAS = ("city centre", "riverside")
_WORDS, _PRICES = ("low", "average", "high"), ("cheap", "moderate", "high")
_STARS = ("1 out of 5", "3 out of 5", "5 out of 5")
_POUNDS = ("less than £20", "£20-25", "more than £30")

Frame = dict[str, str]
"""value -> wording. A key with " + " stands for two values of one slot."""


def _each(values: tuple[str, ...], *wordings: str) -> list[Frame]:
    """Frames in which each value is said by its own name; ``{}`` in a wording is its place."""
    return [{value: wording.format(value) for value in values} for wording in wordings]


def _rows(values: tuple[str, ...], *rows: tuple[str, ...]) -> list[Frame]:
    return [dict(zip(values, row, strict=True)) for row in rows]


FRAMES: dict[str, list[Frame]] = {
    "eatType": [
        *_each(("coffee shop", "pub", "restaurant"), "{}"),
        {"coffee shop": "coffee shop", "coffee shop + restaurant": "coffee shop and restaurant"},
        {"pub": "pub", "pub + restaurant": "pub and restaurant"},
        {"restaurant": "restaurant", "coffee shop + restaurant": "restaurant and coffee shop"},
        {"restaurant": "restaurant", "pub + restaurant": "restaurant and pub"},
    ],
    "food": [{**_each(_FOODS, "{} food")[0], "Fast food": "fast food"}, *_each(_FOODS, "{}")],
    "area": _rows(
        _AREAS,
        ("in the city centre", "on the riverside"),
        ("in the city centre", "by the riverside"),
        ("in the city centre", "in the riverside area"),
        ("in the centre of the city", "by the river"),
        ("city centre area", "riverside area"),
        ("in the city centre", "in the riverside"),
        ("in city centre", "in riverside"),
    ) + _rows(
        (*_AREAS, "city centre + riverside"),
        ("in the city centre", "by the riverside", "by the riverside in the city centre"),
        ("in the city centre", "in the riverside area", "in the riverside area of the city centre"),
    ),
    "rating": [
        *_each(
            _WORDS, "{} customer rating", "{} rating", "{} customer review", "{} review", "{} rated", "{}-rated",
            "rating is {}", "ratings are {}", "rated {}", "rated as {}", "rating of {}",
        ),
        *_rows(_WORDS, ("poor rating", "average rating", "excellent rating"), ("lowly", "averagely", "highly")),
        *_each(_STARS, "{}"),
        *_rows(_STARS, ("one out of five", "three out of five", "five out of five"), ("1-star", "3-star", "5-star")),
        *_rows(_STARS, ("1 star", "3 star", "5 star"), ("one star", "three star", "five star")),
        {**_each(_WORDS, "a {} customer rating")[0], **_each(_STARS, "a customer rating of {}")[0]},
    ],
    "priceRange": [
        *_each(_PRICES, "{} price", "{}-price", "{} pricing", "prices are {}", "price range is {}", "price is {}"),
        *_rows(_PRICES, ("low price", "moderate price", "high price"), ("low-price", "moderate-price", "high-price")),
        *_rows(_PRICES, ("cheaply", "moderately", "highly"), ("is cheap", "is moderately priced", "is expensive")),
        *_rows(("cheap", "high"), ("cheap", "expensive"), ("inexpensive", "expensive")),
        *_each(_POUNDS, "{}"),
        *_rows(("less than £20", "more than £30"), ("under £20", "over £30"), ("below £20", "above £30")),
        {**_each(_PRICES, "a {} price range")[0], **_each(_POUNDS, "a price range of {}")[0]},
    ],
    "familyFriendly": [
        {"yes": f"{before} {who}{gap}friendly", "no": f"{before} {no} {who}{gap}friendly"}
        for who in ("family", "child", "children", "kid", "kids")
        for gap in ("-", " ")
        for before, no in (("is", "not"), ("are", "not"), ("a", "non"))
    ],
}  # fmt: skip


def swap_value(meaning: Meaning, text: str, rng: random.Random, slot: str | None = None) -> tuple[Meaning, str] | None:
    """`text` with another value of one slot (of `slot`, if given), and the meaning that it then has.

    None where no frame fits, or where `slot_errors` finds a slip in the result.
    """
    slots = [one for one in (FRAMES if slot is None else (slot,)) if one in meaning]
    if not slots:
        return None
    slot = rng.choice(slots)
    old = rng.choice([*meaning[slot], " + ".join(sorted(meaning[slot]))])
    fitting = [
        (frame, found) for frame in FRAMES[slot] if old in frame and (found := _pattern(frame[old]).search(text))
    ]
    if not fitting:
        return None
    frame, found = rng.choice(fitting)
    value = rng.choice(sorted(frame.keys() - set(meaning[slot]) - {old}) or [old])
    new = frame[value]
    if found[2][0].isupper():  # at the beginning of a sentence, or a nationality
        new = new[0].upper() + new[1:]
    start = text[: found.start()] + _article(found[1], new)
    changed = {**meaning, slot: sorted(set(meaning[slot]) - set(old.split(" + ")) | set(value.split(" + ")))}
    text = start + new + text[found.end() :]
    return None if value == old or slot_errors(text, changed).total else (changed, text)


def drop_sentence(meaning: Meaning, text: str, rng: random.Random) -> tuple[Meaning, str] | None:
    """`text` without one of its sentences, and the slots that it still says. None for a single sentence, or where
    `slot_errors` finds another slip than slots that are missing now.
    """
    sentences = re.findall(r"[^.!?]+[.!?]+\s*", text)
    if len(sentences) < 2 or "".join(sentences) != text:
        return None
    sentences.pop(rng.randrange(len(sentences)))
    text = "".join(sentences).strip()
    errors = slot_errors(text, meaning)
    left = {slot: values for slot, values in meaning.items() if slot not in errors.missing}
    unusable = errors.wrong or errors.invented or "name" in errors.missing or len(left) < 2
    return None if unusable else (left, text)


def _pattern(wording: str) -> re.Pattern:
    """Groups: an article and its space or nothing, the wording."""
    found = _PATTERNS.get(wording)
    if found is None:
        found = re.compile(rf"(\b[Aa]n? )?(?<![\w£-])({re.escape(wording)})(?!\w)", re.IGNORECASE)
        _PATTERNS[wording] = found
    return found


_PATTERNS: dict[str, re.Pattern] = {}


def _article(before: str | None, new: str) -> str:
    """The article that was `before` the old wording, as it must be before the `new` one."""
    if not before:
        return ""
    return before[0] + ("n " if new[0].lower() in "aeiou" else " ")
