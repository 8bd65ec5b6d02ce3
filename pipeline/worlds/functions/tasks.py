"""Tasks of the function world: what a function `f` has to do, in words, as an oracle, and as good code.

Three kinds: `list` (choose, change and gather the numbers of xs), `pair` (two numbers) and `text` (letters of s).
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

NUMBERS = range(2, 10)  # the constants that a task may name


class Part(NamedTuple):
    """One step of a task: its name, and the number that it takes, if it takes one."""

    name: str
    number: int | None = None


class Task(NamedTuple):
    """`kind` and three steps: which, changed how, gathered how (list); of what, then what (pair, text)."""

    kind: str
    which: Part
    change: Part
    end: Part


# name -> (takes a number, wordings, code, oracle). `#` stands for the number.
CHOOSE: dict[str, tuple] = {
    "all": (False, ("numbers",), "", lambda x, n: True),
    "even": (False, ("even numbers",), "x % 2 == 0", lambda x, n: x % 2 == 0),
    "odd": (False, ("odd numbers",), "x % 2 == 1", lambda x, n: x % 2 == 1),
    "positive": (False, ("positive numbers",), "x > 0", lambda x, n: x > 0),
    "negative": (False, ("negative numbers",), "x < 0", lambda x, n: x < 0),
    "above": (True, ("numbers above #", "numbers greater than #"), "x > #", lambda x, n: x > n),
    "below": (True, ("numbers below #", "numbers less than #"), "x < #", lambda x, n: x < n),
}
CHANGE: dict[str, tuple] = {
    "none": (False, ("",), "x", lambda x, n: x),
    "squared": (False, (", each squared",), "x * x", lambda x, n: x * x),
    "plus": (True, (", each plus #",), "x + #", lambda x, n: x + n),
    "times": (True, (", each times #",), "x * #", lambda x, n: x * n),
}
GATHER: dict[str, tuple] = {
    "sum": (False, ("the sum of the @", "the total of the @"), "sum(%)", lambda xs, n: sum(xs)),
    "count": (False, ("the count of the @", "how many of the @"), "len([%])", lambda xs, n: len(xs)),
    "largest": (False, ("the largest of the @, or 0",), "max((%), default=0)", lambda xs, n: max(xs, default=0)),
    "smallest": (False, ("the smallest of the @, or 0",), "min((%), default=0)", lambda xs, n: min(xs, default=0)),
    "list": (False, ("the @", "a list of the @"), "[%]", lambda xs, n: list(xs)),
}
PAIR: dict[str, tuple] = {
    "sum": (False, ("the sum of a and b", "a plus b"), "a + b", lambda v, n: v[0] + v[1]),
    "difference": (False, ("a minus b",), "a - b", lambda v, n: v[0] - v[1]),
    "product": (False, ("the product of a and b", "a times b"), "a * b", lambda v, n: v[0] * v[1]),
    "larger": (False, ("the larger of a and b",), "max(a, b)", lambda v, n: max(v)),
    "smaller": (False, ("the smaller of a and b",), "min(a, b)", lambda v, n: min(v)),
}
THEN: dict[str, tuple] = {
    "none": (False, ("",), "%", lambda x, n: x),
    "squared": (False, (", squared",), "(%) ** 2", lambda x, n: x**2),
    "plus": (True, (", plus #",), "% + #", lambda x, n: x + n),
    "minus": (True, (", minus #",), "% - #", lambda x, n: x - n),
    "times": (True, (", times #",), "(%) * #", lambda x, n: x * n),
}
LETTERS: dict[str, tuple] = {
    "all": (False, ("s", "the text s"), "s", lambda s, n: s),
    "first": (True, ("the first # letters of s",), "s[:#]", lambda s, n: s[:n]),
    "last": (True, ("the last # letters of s",), "s[-#:]", lambda s, n: s[-n:]),
    "after": (True, ("s without its first # letters",), "s[#:]", lambda s, n: s[n:]),
}
TURN: dict[str, tuple] = {
    "none": (False, ("",), "%", lambda s, n: s),
    "reversed": (False, (", reversed", ", backwards"), "%[::-1]", lambda s, n: s[::-1]),
    "upper": (False, (", in capitals",), "%.upper()", lambda s, n: s.upper()),
    "lower": (False, (", in small letters",), "%.lower()", lambda s, n: s.lower()),
}
REPEAT: dict[str, tuple] = {
    "once": (False, ("",), "%", lambda s, n: s),
    "times": (True, (", # times over",), "% * #", lambda s, n: s * n),
}
STEPS = {
    "list": (CHOOSE, CHANGE, GATHER),
    "pair": (PAIR, THEN, {"none": THEN["none"]}),
    "text": (LETTERS, TURN, REPEAT),
}
NO_TASK = (Part("all"), Part("none"), Part("once"))  # f(s): s
ARGUMENTS = {"list": "xs", "pair": "a, b", "text": "s"}


def draw_task(rng: random.Random) -> Task:
    """A random task, of some three thousand; half of them about lists."""
    kind = rng.choice(("list", "list", "pair", "text"))
    while True:
        task = Task(kind, *(_draw_part(steps, rng) for steps in STEPS[kind]))
        counts_changed = task.end.name == "count" and task.change.name != "none"  # which changes nothing
        if task[1:] != NO_TASK and not counts_changed:
            return task


def _draw_part(steps: dict[str, tuple], rng: random.Random) -> Part:
    name = rng.choice(list(steps))
    return Part(name, rng.choice(NUMBERS) if steps[name][0] else None)


def describe(task: Task, rng: random.Random) -> str:
    """A random wording of `task`."""
    which, change, end = (
        rng.choice(steps[part.name][1]).replace("#", str(part.number))
        for steps, part in zip(STEPS[task.kind], task[1:], strict=True)
    )
    if task.kind == "list":  # ", or 0" stays last
        before, _, after = end.partition("@")
        return f"{before}{which} in xs{change}{after}"
    return which + change + end


def oracle(task: Task) -> Callable[..., Any]:
    """What `f` must give back for its arguments."""
    first, second, third = (steps[part.name][3] for steps, part in zip(STEPS[task.kind], task[1:], strict=True))
    n, m, k = (part.number for part in task[1:])
    if task.kind == "list":
        return lambda xs: third([second(x, m) for x in xs if first(x, n)], k)
    if task.kind == "pair":
        return lambda a, b: second(first((a, b), n), m)
    return lambda s: third(second(first(s, n), m), k)


def pieces(task: Task) -> list[str]:
    """The code of each step; `%` in it stands for the code of the steps before."""
    return [
        steps[part.name][2].replace("#", str(part.number))
        for steps, part in zip(STEPS[task.kind], task[1:], strict=True)
    ]


def expression(task: Task) -> str:
    """The short code: what stands after `return`."""
    first, second, third = pieces(task)
    if task.kind == "list":
        return third.replace("%", f"{second} for x in xs" + (f" if {first}" if first else ""))
    return third.replace("%", second.replace("%", first))


def short(task: Task) -> str:
    """A function of two lines that does what `task` says."""
    return f"def f({ARGUMENTS[task.kind]}):\n    return {expression(task)}"


def long(task: Task) -> str:
    """The same, with a loop or variables."""
    first, second, third = pieces(task)
    if task.kind == "list":
        condition, indent = (f"        if {first}:\n", 12) if first else ("", 8)
        body = f"    y = []\n    for x in xs:\n{condition}{' ' * indent}y.append({second})\n"
        third = third.replace("[%]", "%").replace("((%)", "(%")
    else:
        body = f"    y = {first}\n    y = {second.replace('%', 'y')}\n"
    return f"def f({ARGUMENTS[task.kind]}):\n{body}    return {third.replace('%', 'y')}"
