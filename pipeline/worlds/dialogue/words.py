"""Vocabulary and sentences of the ferry desk: what the customer says and what the desk says.

A booking has four slots. A sentence with ``{}`` takes a trip: "two seats to Fara on Monday by the morning boat", with
"a trip" where the number of seats is not said.
"""

import re
from collections.abc import Mapping

SLOTS = ("seats", "place", "day", "boat")
VALUES: dict[str, tuple[str, ...]] = {
    "seats": ("one", "two", "three", "four", "five", "six"),
    "place": tuple("Fara Skell Ombra Tarn Vesk Lune Pell Quill Dray Hask Corrin Sorn".split()),
    "day": tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
    "boat": ("morning", "noon", "evening", "night"),
}
FORMS = {"seats": "{} seats", "place": "to {}", "day": "on {}", "boat": "by the {} boat"}
NAMES = {"seats": "number of seats", "place": "island", "day": "day", "boat": "boat"}

# --- the desk ---
COURTESIES = ("Thank you.", "Gladly.", "Of course.", "Certainly.", "With pleasure.", "You are most welcome.")
NOTES = ("I have noted {}.", "This is for {}.", "I put down {}.", "My list now says {}.")
BOOKINGS = ("I have booked {}.", "Your booking is for {}.", "You are down for {}.", "That makes {}.")
FAREWELLS = ("Have a pleasant crossing.", "We wish you a calm sea.", "Enjoy the islands.", "Until then.")
_QUESTIONS = ("Which {} would you like?", "May I ask for the {}?", "Could you tell me the {}?", "Which {}, please?")
QUESTIONS = {slot: tuple(form.format(NAMES[slot]) for form in _QUESTIONS) for slot in SLOTS}

CURT = ("OK.", "Right.", "Fine.", "Yes.")
CURT_QUESTIONS = {
    "seats": ("How many?", "What number?"),
    "place": ("Where to?", "What island?"),
    "day": ("When?", "What day?"),
    "boat": ("What boat?", "Boat?"),
}

# --- the customer ---
OPENINGS = ("Hello, I would like {}.", "Hello, please book {}.", "Hi, I need {}.", "Good day, I am after {}.")
GIVEN = ("{}.", "{}, please.", "{} would be good.")
CHANGES = ("Sorry, make that {}.", "I changed my mind, {}.", "Oh, rather {}.")
RECALLS = ("Which {} did I say?", "What {} was it again?")


def say(slot: str, value: str) -> str:
    """("day", "Monday") -> "on Monday"; one seat, two seats."""
    return "one seat" if value == "one" else FORMS[slot].format(value)


def listed(values: Mapping[str, str]) -> str:
    """The values' phrases in the order of SLOTS: "two seats on Monday"."""
    return " ".join(say(slot, values[slot]) for slot in SLOTS if slot in values)


def trip(values: Mapping[str, str]) -> str:
    """As `listed`, with "a trip" for a head where no number of seats is given."""
    return listed(values) if "seats" in values else f"a trip {listed(values)}"


def sentences(text: str) -> list[str]:
    """The sentences of `text` with their marks; what has none at the end is one too."""
    return [found.strip() for found in re.findall(r"[^.?!]*[.?!]|[^.?!]+$", text) if found.strip()]
