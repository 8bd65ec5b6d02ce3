"""How people get a field note wrong: what is left to learn after SFT, and what the preference pairs are about."""

import random
from dataclasses import dataclass, replace

from .grammar import REMARKS, SLOTS, WORDS, realize


@dataclass(frozen=True)
class Noise:
    """Chances of each slip for one text (`drop` and `wrong`: for each fact but the animal)."""

    drop: float = 0.0
    """A fact is forgotten."""
    wrong: float = 0.0
    """A fact gets another value."""
    invent: float = 0.0
    """A slot that has no fact gets a value."""
    ramble: float = 0.0
    """A remark that says no fact is added (a second one with the same chance)."""
    stutter: float = 0.0
    """A word or two said twice."""
    broken: float = 0.0
    """A word lost, two words swapped, no capital, or no period."""
    truncate: float = 0.0
    """The text stops half-way."""
    stuff: float = 0.0
    """Bare keywords in a row in place of sentences."""


CLEAN = Noise()
HUMAN = Noise(drop=0.22, wrong=0.02, invent=0.08, ramble=0.16, stutter=0.04, broken=0.03)
MESSY = Noise(drop=0.15, wrong=0.03, invent=0.06, ramble=0.15, stutter=0.03, broken=0.04, truncate=0.02)


def misremember(facts: dict[str, str], noise: Noise, rng: random.Random) -> dict[str, str]:
    """What a writer with these slips says of `facts`: some forgotten, some wrong, some invented."""
    said = {}
    for slot in SLOTS:
        if slot not in facts:
            if slot != "animal" and rng.random() < noise.invent:
                said[slot] = rng.choice(list(WORDS[slot]))
            continue
        if slot != "animal" and rng.random() < noise.drop:
            continue
        other = slot != "animal" and rng.random() < noise.wrong
        said[slot] = rng.choice([v for v in WORDS[slot] if v != facts[slot]]) if other else facts[slot]
    return said


def _stutter(words: list[str], rng: random.Random) -> list[str]:
    at, size = rng.randrange(len(words)), rng.choice((1, 1, 2))
    return words[: at + size] + words[at : at + size] + words[at + size :]


def _break(words: list[str], rng: random.Random) -> list[str]:
    at = rng.randrange(len(words) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return words[:at] + words[at + 1 :]
    if kind == 1:
        return words[:at] + [words[at + 1], words[at]] + words[at + 2 :]
    if kind == 2:
        return [words[0].lower(), *words[1:]]
    return [*words[:-1], words[-1].rstrip(".")]


def stuffed(facts: dict[str, str], rng: random.Random) -> str:
    """The facts' keywords in a row, as a model that games a keyword reward would write."""
    words = [rng.choice(WORDS[slot][value]) for slot, value in facts.items()]
    rng.shuffle(words)
    return rng.choice((" ", ", ", " and ")).join(words).capitalize() + rng.choice(("", "."))


def write(facts: dict[str, str], noise: Noise, rng: random.Random) -> str:
    """One text about `facts` (slot -> value) with the slips of `noise`."""
    if rng.random() < noise.stuff:
        return stuffed(facts, rng)
    return spoil(realize(misremember(facts, noise, rng), rng), noise, rng)


def spoil(text: str, noise: Noise, rng: random.Random) -> str:
    """`text` with the slips of wording: remarks, stutter, broken grammar, a stop half-way."""
    remarks = rng.sample(REMARKS, 2)
    if rng.random() < noise.ramble:
        text += " " + remarks[0]
        if rng.random() < noise.ramble:
            text += " " + remarks[1]
    words = text.split()
    if rng.random() < noise.stutter:
        words = _stutter(words, rng)
    if rng.random() < noise.broken:
        words = _break(words, rng)
    if rng.random() < noise.truncate:
        words = words[: rng.randint(2, max(2, len(words) - 2))]
    return " ".join(words)


def varied(rng: random.Random) -> Noise:
    """A noise level for a candidate of a preference pair: clean, human, or mostly one kind of slip."""
    base = replace(HUMAN, drop=0.08, invent=0.04, ramble=0.06, stutter=0.02, broken=0.02)
    one = {
        "clean": CLEAN,
        "human": HUMAN,
        "drop": replace(base, drop=0.4),
        "wrong": replace(base, wrong=0.3),
        "invent": replace(base, invent=0.6),
        "ramble": replace(base, ramble=0.9),
        "stutter": replace(base, stutter=1.0),
        "broken": replace(base, broken=1.0),
        "truncate": replace(base, truncate=1.0),
        "stuff": replace(base, stuff=1.0),
    }
    kinds, weights = list(one), (5, 5, 4, 3, 3, 2, 1, 1, 1, 1)
    return one[rng.choices(kinds, weights)[0]]
