"""How people get a text about a topic wrong."""

import random
from dataclasses import dataclass

from .grammar import KEYWORDS, Topic, sentences, topics


@dataclass(frozen=True)
class Noise:
    """Chances of each slip for one text."""

    stray: float = 0.0
    """A sentence about another trade takes the place of one."""
    repeat: float = 0.0
    """A sentence is said twice."""
    broken: float = 0.0
    """A character lost or said twice, or two swapped (for each sentence)."""
    tags: float = 0.0
    """A line of keywords is added, as web pages have them."""
    truncate: float = 0.0
    """The text stops half-way."""


HUMAN = Noise(stray=0.12, repeat=0.06, broken=0.05, tags=0.04, truncate=0.03)
MESSY = Noise(stray=0.15, repeat=0.08, broken=0.06, tags=0.08, truncate=0.04)


def write(topic: Topic, noise: Noise, rng: random.Random) -> str:
    """One text about `topic` with the slips of `noise`."""
    said = sentences(topic, rng)
    if rng.random() < noise.stray:
        said[rng.randrange(len(said))] = rng.choice(sentences(rng.choice(topics()), rng))
    if rng.random() < noise.repeat:
        said.append(rng.choice(said))
    said = [_break(one, rng) if rng.random() < noise.broken else one for one in said]
    if rng.random() < noise.tags:
        said.append("关键词：" + "、".join(rng.sample(list(KEYWORDS), rng.randint(3, 6))) + "。")
    text = "".join(said)
    return text[: rng.randint(4, len(text) - 2)] if rng.random() < noise.truncate else text


def _break(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) - 2)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[: at + 1] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
