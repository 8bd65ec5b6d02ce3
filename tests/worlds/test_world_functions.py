"""The function world: its tasks by hand, its referee in the sandbox, its data."""

import random

import pytest
from sandboxed import sandboxed

from pipeline.worlds import WorldSettings, functions, referee
from pipeline.worlds.functions.slips import HUMAN, SLOPPY, Slips, write
from pipeline.worlds.functions.tasks import Part, Task, describe, draw_task, long, oracle, short

SMALL = {"sft_rows": 200, "prompt_rows": 100, "heldout_rows": 40, "pretraining_texts": 300}
SQUARES = Task("list", Part("even"), Part("squared"), Part("sum"))
ABOVE = Task("list", Part("above", 3), Part("plus", 2), Part("largest"))
TAIL = Task("text", Part("last", 2), Part("reversed"), Part("times", 3))
PRODUCT = Task("pair", Part("difference"), Part("times", 4), Part("none"))


@pytest.fixture(scope="module")
def made():
    return functions.make_data(WorldSettings(world="functions", **SMALL))


def describe_first(task):
    class First(random.Random):
        def choice(self, options):
            return options[0]

    return describe(task, First())


COUNT = Task("list", Part("all"), Part("none"), Part("count"))
NEGATIVE = Task("list", Part("negative"), Part("times", 2), Part("list"))
LARGER = Task("pair", Part("larger"), Part("squared"), Part("none"))


@pytest.mark.parametrize(
    ("task", "words", "one_line"),
    [
        (SQUARES, "the sum of the even numbers in xs, each squared", "sum(x * x for x in xs if x % 2 == 0)"),
        (
            ABOVE,
            "the largest of the numbers above 3 in xs, each plus 2, or 0",
            "max((x + 2 for x in xs if x > 3), default=0)",
        ),
        (TAIL, "the last 2 letters of s, reversed, 3 times over", "s[-2:][::-1] * 3"),
        (PRODUCT, "a minus b, times 4", "(a - b) * 4"),
        (COUNT, "the count of the numbers in xs", "len([x for x in xs])"),
        (NEGATIVE, "the negative numbers in xs, each times 2", "[x * 2 for x in xs if x < 0]"),
        (LARGER, "the larger of a and b, squared", "(max(a, b)) ** 2"),
    ],
)
def test_words_and_code_by_hand(task, words, one_line):
    assert describe_first(task) == words
    assert short(task).splitlines()[1] == f"    return {one_line}"


@pytest.mark.parametrize(
    ("task", "arguments", "answer"),
    [
        (SQUARES, ([1, 2, -4, 3],), 20),
        (ABOVE, ([3, 4, 9],), 11),
        (ABOVE, ([3, 1],), 0),
        (ABOVE, ([],), 0),
        (TAIL, ("otter",), "rerere"),
        (PRODUCT, (2, 5), -12),
        (COUNT, ([7, 7],), 2),
        (NEGATIVE, ([-1, 0, -2],), [-2, -4]),
        (LARGER, (-3, 2), 4),
    ],
)
def test_answers_by_hand(task, arguments, answer):
    assert oracle(task)(*arguments) == answer


def test_long_code_by_hand():
    assert long(ABOVE) == (
        "def f(xs):\n    y = []\n    for x in xs:\n        if x > 3:\n            y.append(x + 2)\n"
        "    return max(y, default=0)"
    )
    assert long(TAIL) == "def f(s):\n    y = s[-2:]\n    y = y[::-1]\n    return y * 3"


def defined(code: str):
    """`f` of code that was written by the world itself."""
    names: dict = {}
    exec(code, names)
    return names["f"]


def test_short_and_long_code_do_what_the_oracle_says():
    rng = random.Random(1)
    for _ in range(400):
        task = draw_task(rng)
        given = functions.arguments(task, 6, rng) + ([([],)] if task.kind == "list" else [])
        for f in (defined(short(task)), defined(long(task))):
            assert [f(*one) for one in given] == [oracle(task)(*one) for one in given], task


def test_slips_by_hand():
    def said(task, **slips):
        return {write(task, Slips(**slips), random.Random(seed)) for seed in range(40)}

    assert said(ABOVE) == {short(ABOVE)} and said(ABOVE, long=1.0) == {long(ABOVE)}
    assert said(ABOVE, bound=1.0, empty=1.0) == {"def f(xs):\n    return max((x + 2 for x in xs if x >= 3))"}
    assert said(SQUARES, mute=1.0) == {short(SQUARES).replace("return ", "")}
    assert said(TAIL, ignore=1.0) == {"def f(s):\n    return s[-2:]"}
    assert said(PRODUCT, number=1.0) == {f"def f(a, b):\n    return (a - b) * {n}" for n in (2, 3, 5, 6, 7, 8, 9)}
    for code in said(PRODUCT, syntax=1.0):
        assert len(code) == len(short(PRODUCT)) - 1
        with pytest.raises(SyntaxError):
            compile(code, "", "exec")


@pytest.mark.slow  # 240 programs in the sandbox
@sandboxed
def test_training_code_leaves_room():
    from rewards import Code

    rng = random.Random(2)
    share = {}
    for slips in (HUMAN, SLOPPY):
        rows = [(task, functions.prompt_row(task, rng)) for task in (draw_task(rng) for _ in range(120))]
        hidden = [[row["hidden"]] for _, row in rows]
        codes = [write(task, slips, rng) for task, _ in rows]
        share[slips] = sum(Code(column="hidden")(codes, codes, hidden=hidden)) / len(rows)
    assert 0.3 < share[SLOPPY] < share[HUMAN] < 0.8


@sandboxed
def test_referee_by_pencil():
    hidden = "assert f([1, 2]) == 4\nassert f([]) == 0"
    judge = referee("functions")
    row = {"prompt": "f(xs): …\n", "hidden": hidden, "tests": ["assert f([1, 2]) == 4"]}
    assert judge(short(SQUARES), row) == {"hidden": 1.0}
    assert judge("def f(xs):\n    return 4", row) == {"hidden": 0.0}  # right for one of two
    assert judge("def f(xs) return 4", row) == judge("", row) == {"hidden": 0.0}
    assert judge("import os\ndef f(xs):\n    os.listdir('/')\n    return sum(xs) + 1 if xs else 0", row) == {
        "hidden": 0.0
    }


def test_rows(made):
    assert {name: len(rows) for name, rows in made.items()} == {
        "prompts_heldout": 40,
        "prompts_train": 100,
        "sft_train": 200,
    }
    for row in made["prompts_heldout"] + made["prompts_train"]:
        hidden = row["hidden"].splitlines()
        assert len(row["tests"]) == 2 and len(hidden) == 8 and not set(hidden) & set(row["tests"])
        assert len(set(hidden)) == 8 and row["prompt"].endswith("\n")
    lists = [row for row in made["prompts_train"] if row["prompt"].startswith("f(xs)")]
    shown = sum("f([])" in "".join(row["tests"]) for row in lists) / len(lists)
    assert 0.2 < shown < 0.8 and all("f([])" in row["hidden"] + "".join(row["tests"]) for row in lists)


def test_the_same_seed_makes_the_same_data(made):
    assert functions.make_data(WorldSettings(world="functions", **SMALL)) == made
    assert functions.make_data(WorldSettings(world="functions", **SMALL, seed=43)) != made


def test_held_out_tasks_are_in_no_training_row(monkeypatch):
    """One wording for a task, and no slips: then equal tasks are equal prompts."""
    monkeypatch.setattr(functions, "describe", lambda task, rng: repr(task))
    world_settings = WorldSettings(sft_rows=1500, prompt_rows=1500, heldout_rows=150, pretraining_texts=1500)
    made = functions.make_data(world_settings)
    held = {row["prompt"] for row in made["prompts_heldout"]}
    assert len(held) == 150
    for name in ("sft_train", "prompts_train"):
        assert not held & {row["prompt"] for row in made[name]}
    documents = functions.pretraining_texts(world_settings, made)
    assert len(documents) == 1500 and not held & {prompt for prompt, _ in documents}
