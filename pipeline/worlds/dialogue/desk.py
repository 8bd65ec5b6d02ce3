"""Visits to the ferry desk: what a customer says turn by turn, and what the desk answers, with or without slips."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .words import (
    BOOKINGS,
    CHANGES,
    COURTESIES,
    CURT,
    CURT_QUESTIONS,
    FAREWELLS,
    GIVEN,
    NAMES,
    NOTES,
    OPENINGS,
    QUESTIONS,
    RECALLS,
    SLOTS,
    VALUES,
    listed,
    sentences,
    trip,
)

MAX_TURNS = 4

# How likely each slip is in an answer of the desk, each by itself.
HUMAN = {
    "curt": 0.2,
    "wrong": 0.06,
    "forget": 0.1,
    "ask_known": 0.1,
    "ask_nothing": 0.08,
    "echo": 0.15,
    "garble": 0.03,
}
SLIPS = tuple(HUMAN)


class Turn(NamedTuple):
    """What the customer says, and what the desk's answer has to do with it."""

    user: str
    facts: dict[str, str]  # slot -> value that the answer is to say
    known: dict[str, str]  # everything the customer wants so far, changes of mind included
    ask: str | None  # the slot that is asked for next; None: all four are known

    @property
    def booked(self) -> bool:
        """Whether the answer is to sum up the whole booking."""
        return self.ask is None and self.facts == self.known


def draw_visit(rng: random.Random) -> list[Turn]:
    """Two to four turns of a customer, who gives one or two slots at a time, may change their mind, and may ask what
    was said before.
    """
    wanted = {slot: rng.choice(VALUES[slot]) for slot in SLOTS}
    given = rng.sample(SLOTS, rng.choice((1, 2, 2)))
    turns = [_turn(rng.choice(OPENINGS).format(trip({s: wanted[s] for s in given})), given, {}, wanted, rng)]
    recalled = False
    while len(turns) < MAX_TURNS:
        known, asked, chance = turns[-1].known, turns[-1].ask, rng.random()
        slot = rng.choice(list(known))
        if chance < 0.2 and not recalled:
            turns.append(Turn(rng.choice(RECALLS).format(NAMES[slot]), {slot: known[slot]}, known, asked))
            recalled = True
            continue
        if chance < 0.35:
            wanted[slot] = rng.choice([value for value in VALUES[slot] if value != known[slot]])
            given, frame = [slot], rng.choice(CHANGES)
        elif asked is not None:
            others = [other for other in SLOTS if other not in known and other != asked]
            given, frame = [asked, *rng.sample(others, min(len(others), rng.choice((0, 0, 1))))], rng.choice(GIVEN)
        else:
            break
        text = frame.format(listed({s: wanted[s] for s in given}))
        turns.append(_turn(text[0].upper() + text[1:], given, known, wanted, rng))
        recalled = False
    return turns


def _turn(user: str, given: Sequence[str], before: Mapping[str, str], wanted: Mapping[str, str], rng) -> Turn:
    known = {slot: wanted[slot] for slot in SLOTS if slot in before or slot in given}
    missing = [slot for slot in SLOTS if slot not in known]
    facts = {slot: wanted[slot] for slot in given} if missing else known
    return Turn(user, facts, known, rng.choice(missing) if missing else None)


def possible_slips(turn: Turn) -> tuple[str, ...]:
    """Slips that show in an answer to this turn; where nothing is to be asked, not asking is none."""
    return tuple(slip for slip in SLIPS if slip != "ask_nothing" or turn.ask)


def draw_slips(turn: Turn, rng: random.Random, chances: Mapping[str, float] = HUMAN) -> frozenset[str]:
    """The slips of one answer."""
    return frozenset(slip for slip in possible_slips(turn) if rng.random() < chances[slip])


def answer(turn: Turn, earlier: Sequence[str], slips: frozenset[str], rng: random.Random) -> str:
    """The desk's answer: a courtesy, what it understood, and the next question or the whole booking and a farewell.

    Args:
        earlier: the desk's answers before; without the slip "echo" none of their sentences comes again.
        slips: curt (no courtesy), wrong (a value that nobody said), forget (a fact is left out), ask_known (asks for
            what was said), ask_nothing (no question where one is due), echo (a sentence said before), garble (a word
            lost or two swapped).
    """
    before = [sentence for text in earlier for sentence in sentences(text)]

    def new(choices: Sequence[str]) -> str:
        return rng.choice([choice for choice in choices if choice not in before] or list(choices))

    courtesy = new(CURT if "curt" in slips else COURTESIES)
    facts = _understood(turn, slips, rng)
    questions = CURT_QUESTIONS if "curt" in slips else QUESTIONS
    said = [courtesy]
    if facts:
        said.append(new([frame.format(trip(facts)) for frame in (BOOKINGS if turn.booked else NOTES)]))
    if "ask_known" in slips:
        said.append(new(questions[rng.choice(list(turn.known))]))
    elif turn.ask and "ask_nothing" not in slips:
        said.append(new(questions[turn.ask]))
    elif turn.booked and "curt" not in slips:
        said.append(new(FAREWELLS))
    if "garble" in slips:
        longest = max(range(len(said)), key=lambda i: len(said[i].split()))
        said[longest] = _garble(said[longest], rng)
    if "echo" in slips:
        said = _echo(said, before, rng)
    return " ".join(said)


def _understood(turn: Turn, slips: frozenset[str], rng: random.Random) -> dict[str, str]:
    facts = dict(turn.facts)
    if "wrong" in slips:
        slot = rng.choice(list(facts))
        facts[slot] = rng.choice([value for value in VALUES[slot] if value != facts[slot]])
    if "forget" in slips:
        facts.pop(rng.choice(list(facts)))
    return facts


def _echo(said: list[str], before: list[str], rng: random.Random) -> list[str]:
    """A courtesy of an earlier answer in place of the own one, or any sentence once more."""
    courtesies = [sentence for sentence in before if sentence in COURTESIES]
    if courtesies and said[0] in COURTESIES and rng.random() < 0.7:
        return [rng.choice(courtesies), *said[1:]]
    at = rng.randrange(1, len(said) + 1)
    return [*said[:at], rng.choice(before + said), *said[at:]]


def _garble(sentence: str, rng: random.Random) -> str:
    words = sentence.split()
    if len(words) < 3:
        return sentence.rstrip(".?") + " the."
    at = rng.randrange(len(words) - 1)
    swapped = [words[at + 1], words[at]] if rng.random() < 0.5 else [words[at + 1]]
    return " ".join([*words[:at], *swapped, *words[at + 2 :]])
