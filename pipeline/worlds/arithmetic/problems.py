"""Word problems of two or three steps: drawn, told in words, and worked out."""

import random
from typing import NamedTuple

NAMES = ("Ida", "Omar", "Wen", "Lotte", "Tomasz", "Amara", "Felix", "Noor")
THINGS = ("plums", "shells", "stamps", "pears", "marbles", "cards", "buttons", "coins")
SIGNS = {"more": "+", "bags": "+", "fewer": "-", "shared": "/"}
LARGEST = 30  # that anybody ever has, so that a small model can know its tables
MOST = 15  # that come at once


class Step(NamedTuple):
    """One thing that happens: `more` or `fewer` of them, `bags` of so many each, or all `shared` by so many."""

    kind: str
    number: int
    bags: int = 0


class Problem(NamedTuple):
    """Somebody has `start` things, and then the steps happen."""

    name: str
    thing: str
    start: int
    steps: tuple[Step, ...]


class Equation(NamedTuple):
    """`left sign right = result`, as somebody wrote it; not always true."""

    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}."

    @property
    def true(self) -> bool:
        """Whether it holds."""
        if self.sign == "/":
            return self.result * self.right == self.left
        return self.result == {"+": self.left + self.right, "-": self.left - self.right}.get(
            self.sign, self.left * self.right
        )


def draw_problem(rng: random.Random) -> Problem:
    """A problem in which every number is whole and from 1 to `LARGEST`."""
    has = start = rng.randint(2, 9)
    steps = []
    for _ in range(rng.choice((2, 2, 3))):
        step = _draw_step(has, rng)
        steps.append(step)
        has = after(has, step)
    return Problem(rng.choice(NAMES), rng.choice(THINGS), start, tuple(steps))


def _draw_step(has: int, rng: random.Random) -> Step:
    kinds = ["fewer"] if has > 2 else []
    if has + MOST <= LARGEST:
        kinds += ["more", "bags", "bags"]
    divisors = [n for n in (2, 3) if has % n == 0 and has > n]
    kind = rng.choice(kinds + ["shared"] * bool(divisors) or ["more"])
    if kind == "bags":
        return Step("bags", rng.randint(2, 5), rng.randint(2, 3))
    if kind == "shared":
        return Step("shared", rng.choice(divisors))
    return Step(kind, rng.randint(1, min(has - 1, 9) if kind == "fewer" else 9))


def after(has: int, step: Step) -> int:
    """How many there are after a step."""
    if step.kind == "shared":
        return has // step.number
    return has + {"more": step.number, "fewer": -step.number, "bags": step.bags * step.number}[step.kind]


def tell(problem: Problem) -> str:
    """The problem in words, one line."""
    said = {
        "more": "{name} finds {number} more.",
        "fewer": "{name} gives {number} away.",
        "bags": "{name} buys {bags} bags of {number}.",
        "shared": "{number} friends share them equally, {name} among them.",
    }
    steps = [said[step.kind].format(name=problem.name, **step._asdict()) for step in problem.steps]
    start = f"{problem.name} has {problem.start} {problem.thing}."
    return " ".join([start, *steps, f"How many {problem.thing} has {problem.name} now?"])


def work(problem: Problem) -> list[Equation]:
    """The equations that lead to the answer, the last result."""
    found, has = [], problem.start
    for step in problem.steps:
        number = step.number
        if step.kind == "bags":
            number = step.bags * step.number
            found.append(Equation(step.bags, "*", step.number, number))
        found.append(Equation(has, SIGNS[step.kind], number, has := after(has, step)))
    return found
