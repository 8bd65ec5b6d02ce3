"""Arithmetic: word problems of two or three steps, answered as in GSM8K.

Prompt:     ``Ida has 14 plums. Ida buys 3 bags of 6. Ida gives 5 away. How many plums has Ida now?`` and a newline
Completion: ``3 * 6 = 18. 14 + 18 = 32. 32 - 5 = 27.``, newline, ``#### 27``

Training texts have human slips (`slips`): half of them give the answer at once, and then it is mostly a guess; bags
are often not counted. A row's `answer` is a worked solution that ends in ``#### 27``, the form of GSM8K's column of
that name, so that the reward `math` reads both in the same way. The referee does not: it has arithmetic of its own,
and wants the equations to be true. No preference pairs: the recipe has no reward model.
"""

import random
import re

from ..base import Document, WorldData, WorldSettings
from .problems import Equation, Problem, draw_problem, tell
from .slips import HUMAN, SLOPPY, Slips, write

__all__ = ["HIGHER_IS_BETTER", "make_data", "pretraining_texts", "prompt_of", "referee"]

HIGHER_IS_BETTER = {"right": True, "worked": True}
_EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\.")
_ANSWER = re.compile(r"^#### (\d+)$", re.MULTILINE)


def prompt_of(problem: Problem) -> str:
    """The prompt for `problem`."""
    return f"{tell(problem)}\n"


def referee(completion: str, row: dict) -> dict[str, float]:
    """``{"right": …, "worked": …}``: whether the last line is ``####`` and the right number; and whether, besides,
    there are equations, all of them true, of which the last gives that number."""
    lines = completion.strip().splitlines() or [""]
    marked = _ANSWER.search(lines[-1])
    right = marked is not None and marked[1] == row["answer"].rpartition("#### ")[2]
    found = [Equation(int(a), sign, int(b), int(c)) for a, sign, b, c in _EQUATION.findall("\n".join(lines[:-1]))]
    worked = right and bool(found) and all(one.true for one in found) and str(found[-1].result) == marked[1]
    return {"right": float(right), "worked": float(worked)}


def prompt_row(problem: Problem) -> dict:
    """A row of a prompts file: the problem in words, and its solution."""
    return {"prompt": prompt_of(problem), "answer": write(problem, Slips(), random.Random(0))}


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of `sft_train`, `prompts_train` and `prompts_heldout` (see `pipeline.worlds`).

    No held-out problem is in a training row, with whatever name or thing; a training problem may come again.
    """
    held, rng = _held_out(settings)
    prompts, pairs = (_draw_others(held, count, rng) for count in (settings.prompt_rows, settings.sft_rows))
    return {
        "prompts_heldout": [prompt_row(problem) for problem in held],
        "prompts_train": [prompt_row(problem) for problem in prompts],
        "sft_train": [{"prompt": prompt_of(one), "completion": write(one, HUMAN, rng)} for one in pairs],
    }


def _held_out(settings: WorldSettings) -> tuple[list[Problem], random.Random]:
    """The held-out problems, no two with the same numbers, and the generator as they leave it."""
    rng = random.Random(f"arithmetic {settings.seed}")
    held: dict[tuple, Problem] = {}
    while len(held) < settings.heldout_rows:
        problem = draw_problem(rng)
        held.setdefault((problem.start, problem.steps), problem)
    return list(held.values()), rng


def _draw_others(held: list[Problem], count: int, rng: random.Random) -> list[Problem]:
    """`count` problems with other numbers than those in `held`."""
    taken = {(problem.start, problem.steps) for problem in held}
    found: list[Problem] = []
    while len(found) < count:
        problem = draw_problem(rng)
        if (problem.start, problem.steps) not in taken:
            found.append(problem)
    return found


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Sloppy solutions with their problems, some without. The held-out problems do not occur."""
    held, _ = _held_out(settings)
    rng = random.Random(f"arithmetic pretraining {settings.seed}")
    problems = _draw_others(held, settings.pretraining_texts, rng)
    return [(prompt_of(one) if rng.random() < 0.95 else "", write(one, SLOPPY, rng)) for one in problems]
