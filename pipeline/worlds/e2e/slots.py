"""Meaning representations of the E2E data: reading, writing, and taking the names out and back in."""

import re
from collections.abc import Mapping

from pipeline.errors import UserError

Meaning = dict[str, list[str]]
"""slot -> values (one as a rule; the cleaned data has some with two), in the order of SLOTS."""

SLOTS = ("name", "eatType", "food", "priceRange", "rating", "area", "familyFriendly", "near")
VALUES = {
    "eatType": ("coffee shop", "pub", "restaurant"),
    "food": ("Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"),
    "priceRange": ("cheap", "less than £20", "moderate", "£20-25", "high", "more than £30"),
    "rating": ("low", "1 out of 5", "average", "3 out of 5", "high", "5 out of 5"),
    "area": ("city centre", "riverside"),
    "familyFriendly": ("yes", "no"),
}
NAME, NEAR = "NAME", "NEAR"
_ITEM = re.compile(r"\s*([A-Za-z ]+?)\s*\[([^\[\]]*)\]\s*(?:,|$)")


def parse_mr(mr: str) -> Meaning:
    """Read ``name[Aromi], eatType[pub], customer rating[low]``.

    Raises:
        UserError: `mr` is not of this form or has a slot that the data does not know.
    """
    found: Meaning = {}
    at = 0
    while at < len(mr):
        match = _ITEM.match(mr, at)
        slot = match and {"customer rating": "rating"}.get(match[1], match[1])
        if not match or slot not in SLOTS:
            raise UserError(
                f"meaning representation {mr!r}: expected slot[value] with a slot of {', '.join(SLOTS)}, "
                f"found {mr[at : at + 30]!r}"
            )
        values = found.setdefault(slot, [])
        if match[2] not in values:
            values.append(match[2])
        at = match.end()
    if not found:
        raise UserError("a meaning representation is empty")
    return {slot: found[slot] for slot in SLOTS if slot in found}


def delexicalize(text: str, meaning: Mapping[str, list[str]]) -> str:
    """Put the placeholders NAME and NEAR where `text` has the names of `meaning`."""
    for slot, placeholder in (("near", NEAR), ("name", NAME)):
        for value in meaning.get(slot, []):
            text = re.sub(rf"\b{re.escape(value)}(?!\w)", placeholder, text, flags=re.IGNORECASE)
            bare = value.removeprefix("The ")
            if bare != value:
                text = re.sub(rf"\b{re.escape(bare)}(?!\w)", placeholder, text)
    return text


def relexicalize(text: str, meaning: Mapping[str, list[str]]) -> str:
    """The reverse of `delexicalize`: put the names of `meaning` where `text` has NAME and NEAR."""
    for slot, placeholder in (("name", NAME), ("near", NEAR)):
        if meaning.get(slot):
            text = re.sub(rf"\b{placeholder}\b", lambda _, value=meaning[slot][0]: value, text)
    return text
