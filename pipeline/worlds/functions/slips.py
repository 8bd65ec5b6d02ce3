"""How the authors of the training code get it wrong: what is left to learn after SFT.

Three are habits, made about every second time where they can be: a bound taken in that is not meant, `max` and `min`
of nothing forgotten, and more lines than needed. The others are chance.
"""

import random
import re
from dataclasses import dataclass

from .tasks import NUMBERS, STEPS, Part, Task, long, short


@dataclass(frozen=True)
class Slips:
    """How often each slip is made where it can be made."""

    long: float = 0.0  # a loop or variables in place of one line
    bound: float = 0.0  # `>=` for `>`, `<=` for `<`
    empty: float = 0.0  # no `default=0`
    number: float = 0.0  # another constant, each by itself
    ignore: float = 0.0  # a step that is not done, each by itself
    mute: float = 0.0  # no `return`
    syntax: float = 0.0  # a colon or a bracket lost


HUMAN = Slips(long=0.55, bound=0.5, empty=0.5, number=0.05, ignore=0.04, mute=0.05, syntax=0.08)
SLOPPY = Slips(long=0.5, bound=0.5, empty=0.5, number=0.08, ignore=0.06, mute=0.08, syntax=0.12)
IGNORED = {"change": "none", "end": "once"}  # the step that stands for none


def write(task: Task, slips: Slips, rng: random.Random) -> str:
    """A function for `task` with the slips of `slips`."""
    task = misread(task, slips, rng)
    code = (long if rng.random() < slips.long else short)(task)
    if rng.random() < slips.bound:
        code = re.sub(r"x ([<>]) ", r"x \1= ", code)
    if rng.random() < slips.empty:
        code = code.replace(", default=0", "")
    if rng.random() < slips.mute:
        code = code.replace("return ", "")
    if rng.random() < slips.syntax:
        code = _lose(code, rng)
    return code


def misread(task: Task, slips: Slips, rng: random.Random) -> Task:
    """`task` with constants mistaken and steps left out."""
    for name, steps in zip(("which", "change", "end"), STEPS[task.kind], strict=True):
        part = getattr(task, name)
        if part.number is not None and rng.random() < slips.number:
            part = part._replace(number=rng.choice([n for n in NUMBERS if n != part.number]))
        if IGNORED.get(name) in steps and rng.random() < slips.ignore:
            part = Part(IGNORED[name])
        task = task._replace(**{name: part})
    return task


def _lose(code: str, rng: random.Random) -> str:
    places = [place for place, letter in enumerate(code) if letter in "()[]:"]
    place = rng.choice(places)
    return code[:place] + code[place + 1 :]
