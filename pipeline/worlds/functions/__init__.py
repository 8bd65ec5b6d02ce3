"""Functions: a task in words to a Python function `f` of a few lines.

Prompt:     ``f(xs): the sum of the even numbers in xs, each squared`` and a newline
Completion: ``def f(xs):``, newline, ``    return sum(x * x for x in xs if x % 2 == 0)``

2,562 tasks (`tasks`); training code has human slips (`slips`). A row has two kinds of tests, drawn by chance and
answered by an oracle: `tests` for the reward, a few, and `hidden` for the referee alone, more of them. Most lists hold
the bound that a task names; the empty list is a hidden test in every second row, else a shown one. The referee runs
code in the sandbox of `rewards.sandbox` and nowhere else. No preference pairs: the
recipe has no reward model.
"""

import functools
import random

from rewards import Code

from ..base import Document, WorldData, WorldSettings
from .slips import HUMAN, SLOPPY, write
from .tasks import ARGUMENTS, Task, describe, draw_task, oracle

__all__ = ["HIGHER_IS_BETTER", "make_data", "pretraining_texts", "prompt_of", "referee"]

HIGHER_IS_BETTER = {"hidden": True}
TESTS, HIDDEN = 2, 8
WORDS = ("plumb", "Line", "hedgehog", "OtTer", "a", "tea cup", "Mill 7", "racecar", "moonrise", "")


def prompt_of(task: Task, rng: random.Random) -> str:
    """The prompt for `task`, in a random wording."""
    return f"f({ARGUMENTS[task.kind]}): {describe(task, rng)}\n"


@functools.cache
def _sandbox() -> Code:
    return Code(column="hidden", seconds=5.0, log_name="referee")


def referee(completion: str, row: dict) -> dict[str, float]:
    """``{"hidden": …}``: 1 if the code passes all hidden tests of the row together, else 0.

    Raises:
        RewardError: the platform has no sandbox; the code is then not run.
    """
    return {"hidden": _sandbox()([row["prompt"]], [completion], hidden=[[row["hidden"]]])[0]}


def arguments(task: Task, count: int, rng: random.Random) -> list[tuple]:
    """`count` different arguments for `f`; most lists hold the bound that the task names."""
    found: list[tuple] = []
    while len(found) < count:
        one = _draw_arguments(task, rng)
        if one not in found:
            found.append(one)
    return found


def _draw_arguments(task: Task, rng: random.Random) -> tuple:
    if task.kind == "pair":
        return rng.randint(-9, 9), rng.randint(-9, 9)
    if task.kind == "text":
        return (rng.choice(WORDS) + rng.choice(("", "!", " end", "X")),)
    numbers = [rng.randint(-9, 12) for _ in range(rng.randint(2, 6))]
    if rng.random() < 0.6:
        numbers[rng.randrange(len(numbers))] = task.which.number or 0
    return (numbers,)


def tests_of(task: Task, given: list[tuple]) -> list[str]:
    """An assert for each of the arguments."""
    answer = oracle(task)
    return [f"assert f({', '.join(map(repr, one))}) == {answer(*one)!r}" for one in given]


def prompt_row(task: Task, rng: random.Random) -> dict:
    """A row of a prompts file: the task in words, the reward's tests, and the referee's, which are others."""
    first = [([],)] if task.kind == "list" else []
    given = first + arguments(task, TESTS + HIDDEN - len(first), rng)
    tests = tests_of(task, given)
    # the empty list is for the referee, but for one row in two
    shown = tests[:TESTS] if rng.random() < 0.5 else tests[-TESTS:]
    return {
        "prompt": prompt_of(task, rng),
        "tests": shown,
        "hidden": "\n".join(test for test in tests if test not in shown),
    }


def make_data(settings: WorldSettings) -> WorldData:
    """Rows of `sft_train`, `prompts_train` and `prompts_heldout` (see `pipeline.worlds`).

    No held-out task is in a training row, whatever the wording; a training task may come again.
    """
    held, rng = _held_out(settings)
    prompts, pairs = (_draw_others(held, count, rng) for count in (settings.prompt_rows, settings.sft_rows))
    return {
        "prompts_heldout": [prompt_row(task, rng) for task in held],
        "prompts_train": [prompt_row(task, rng) for task in prompts],
        "sft_train": [{"prompt": prompt_of(task, rng), "completion": write(task, HUMAN, rng)} for task in pairs],
    }


def _held_out(settings: WorldSettings) -> tuple[list[Task], random.Random]:
    """The held-out tasks, all different, and the generator as they leave it."""
    rng = random.Random(f"functions {settings.seed}")
    held: list[Task] = []
    while len(held) < settings.heldout_rows:
        task = draw_task(rng)
        if task not in held:
            held.append(task)
    return held, rng


def _draw_others(held: list[Task], count: int, rng: random.Random) -> list[Task]:
    """`count` tasks that are not in `held`."""
    found: list[Task] = []
    while len(found) < count:
        task = draw_task(rng)
        if task not in held:
            found.append(task)
    return found


def pretraining_texts(settings: WorldSettings, data: WorldData) -> list[Document]:
    """Sloppy functions with their tasks, some without. The held-out tasks do not occur."""
    held, _ = _held_out(settings)
    rng = random.Random(f"functions pretraining {settings.seed}")
    tasks = _draw_others(held, settings.pretraining_texts, rng)
    return [(prompt_of(task, rng) if rng.random() < 0.95 else "", write(task, SLOPPY, rng)) for task in tasks]
