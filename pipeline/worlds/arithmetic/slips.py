"""How the authors of the training texts get it wrong: what is left to learn after SFT.

Two are habits: answering at once, without working it out, which is mostly a guess; and taking "3 bags of 6" for 6. The
others are chance.
"""

import random
from dataclasses import dataclass

from .problems import SIGNS, Equation, Problem, after, work


@dataclass(frozen=True)
class Slips:
    """How often each slip is made where it can be made."""

    at_once: float = 0.0  # the answer alone, without equations
    guess: float = 0.0  # an answer given at once is near the right one, but wrong
    bags: float = 0.0  # the bags are not counted, only what is in one
    forget: float = 0.0  # a step left out, each by itself
    slip: float = 0.0  # a result wrong by 1 or 10, each by itself
    unmarked: float = 0.0  # no "####" before the answer


HUMAN = Slips(at_once=0.5, guess=0.6, bags=0.4, forget=0.04, slip=0.03, unmarked=0.25)
SLOPPY = Slips(at_once=0.3, guess=0.6, bags=0.45, forget=0.05, slip=0.03, unmarked=0.3)


def write(problem: Problem, slips: Slips, rng: random.Random) -> str:
    """A solution of `problem` with the slips of `slips`: equations on one line, then the answer on another."""
    mark = "" if rng.random() < slips.unmarked else "#### "
    if rng.random() < slips.at_once:
        answer = work(problem)[-1].result
        if rng.random() < slips.guess:
            answer = max(1, answer + rng.choice([n for n in range(-6, 7) if n]))
        return f"{mark}{answer}"
    equations, has = _work(problem, slips, rng)
    return f"{' '.join(map(str, equations))}\n{mark}{has}"


def _work(problem: Problem, slips: Slips, rng: random.Random) -> tuple[list[Equation], int]:
    """The equations as somebody writes them, who goes on with what came out; and what came out last."""
    found: list[Equation] = []
    has = problem.start
    for step in problem.steps:
        if rng.random() < slips.forget:
            continue
        if step.kind == "bags" and rng.random() < slips.bags:
            step = step._replace(kind="more")
        number = step.number
        if step.kind == "bags":
            number = _slipped(step.bags * step.number, slips, rng)
            found.append(Equation(step.bags, "*", step.number, number))
        right = after(has, step._replace(kind="more", number=number) if step.kind == "bags" else step)
        found.append(Equation(has, SIGNS[step.kind], number, has := _slipped(right, slips, rng)))
    return found, has


def _slipped(result: int, slips: Slips, rng: random.Random) -> int:
    return max(1, result + (rng.choice((-10, -1, 1, 10)) if rng.random() < slips.slip else 0))
