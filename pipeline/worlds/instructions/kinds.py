"""What a kind of instruction is here: its wordings, how parameters are drawn, how a text is made to meet it."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewards.instructions.reading import sentences

from .requests import Request

Kwargs = dict[str, Any]
Written = tuple[str, Kwargs] | None
"""A text that meets an instruction, and its parameters; None where the text cannot be made to."""

# Texts pass the kinds in this sequence: form first, then what is added, then letters and marks; what is counted last.
FORM, ADDED, LETTERS, MARKS, COUNTED = range(5)


@dataclass(frozen=True)
class Kind:
    """One kind of instruction.

    Args:
        id: as in `rewards.instructions.KINDS`.
        wordings: sentences of a request, with the parameters and what `said` adds in braces.
        draw: parameters for a prompt.
        write: rewrites a text so that it meets the instruction, with parameters that fit it; a callable
            (text, request, rng).
        rank: when in a rewriting it has its turn.
        clashes: marks of what it decides; two kinds with a mark in common are not asked for together.
        alone: it goes with no other kind but those of keywords.
        said: words for braces that are no parameters.
    """

    id: str
    wordings: tuple[str, ...]
    draw: Callable[[Request, random.Random], Kwargs]
    write: Callable[[str, Request, random.Random], Written]
    rank: int
    clashes: frozenset[str] = frozenset()
    alone: bool = False
    said: Callable[[Kwargs, random.Random], dict[str, str]] = lambda kwargs, rng: {}

    def word(self, kwargs: Kwargs, rng: random.Random) -> str:
        """The instruction in one of its wordings."""
        words = {name: _spoken(name, value, rng) for name, value in kwargs.items()}
        return rng.choice(self.wordings).format(**words | self.said(kwargs, rng))


RELATIONS = {
    "at least": ("at least", "no fewer than", "a minimum of"),
    "less than": ("less than", "fewer than", "under"),
}
SMALL = "zero one two three four five six seven eight nine ten eleven twelve".split()


def _spoken(name: str, value: Any, rng: random.Random) -> str:
    """A parameter as a person would say it."""
    if isinstance(value, list):
        quote = rng.choice(('"', "'", ""))
        return ", ".join(f"{quote}{item}{quote}" for item in value)
    if name.endswith("relation"):
        return rng.choice(RELATIONS[value])
    if isinstance(value, int) and value < len(SMALL) and rng.random() < 0.4:
        return SMALL[value]
    return str(value)


# --- pieces of texts ------------------------------------------------------------------------------------------------
def plain(text: str) -> str:
    """`text` on one line, without the signs of lists, headings and emphasis."""
    lines = (re.sub(r"^\s*(?:[-*•#>]+|\d+[.)])\s+", "", line) for line in text.replace("**", "").splitlines())
    return " ".join(" ".join(line.replace("*", "").split()) for line in lines if line.strip())


def groups(text: str, count: int) -> list[str] | None:
    """The sentences of `text` in `count` groups, none empty; None where they are too few."""
    said = sentences(plain(text))
    if len(said) < count:
        return None
    cuts = [len(said) * i // count for i in range(count + 1)]
    return [" ".join(said[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


def content_words(text: str) -> list[str]:
    """The different longer words of `text`, in small letters, in their sequence."""
    return list(dict.fromkeys(word.lower() for word in re.findall(r"\b[A-Za-z]{5,12}\b", text)))


def either(first: Any, second: Any, rng: random.Random, share: float = 0.6) -> Any:
    """`first` with probability `share`."""
    return first if rng.random() < share else second
