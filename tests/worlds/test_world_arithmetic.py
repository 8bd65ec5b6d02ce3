"""The world of word problems: by pencil, its slips, its referee, its data; the reward reads it as it reads GSM8K."""

import random

import pytest

from pipeline.worlds import WorldSettings, arithmetic, referee
from pipeline.worlds.arithmetic.problems import LARGEST, Equation, Problem, Step, after, draw_problem, tell, work
from pipeline.worlds.arithmetic.slips import HUMAN, SLOPPY, Slips, write

SMALL = {"sft_rows": 200, "prompt_rows": 100, "heldout_rows": 40, "pretraining_texts": 300}
PLUMS = Problem("Ida", "plums", 14, (Step("bags", 6, 3), Step("fewer", 5)))
COINS = Problem("Wen", "coins", 7, (Step("more", 5), Step("shared", 4)))


def test_words_and_equations_by_hand():
    assert tell(PLUMS) == "Ida has 14 plums. Ida buys 3 bags of 6. Ida gives 5 away. How many plums has Ida now?"
    assert tell(COINS) == (
        "Wen has 7 coins. Wen finds 5 more. 4 friends share them equally, Wen among them. How many coins has Wen now?"
    )
    assert write(PLUMS, Slips(), random.Random(0)) == "3 * 6 = 18. 14 + 18 = 32. 32 - 5 = 27.\n#### 27"
    assert write(COINS, Slips(), random.Random(0)) == "7 + 5 = 12. 12 / 4 = 3.\n#### 3"


@pytest.mark.parametrize(
    ("equation", "true"),
    [((2, "+", 3, 5), True), ((2, "-", 3, 1), False), ((4, "*", 3, 12), True), ((7, "/", 2, 3), False),
     ((8, "/", 2, 4), True), ((8, "/", 0, 4), False)],
)  # fmt: skip
def test_equations_that_hold(equation, true):
    assert Equation(*equation).true is true


def test_slips_by_hand():
    def said(**slips):
        return {write(PLUMS, Slips(**slips), random.Random(seed)) for seed in range(60)}

    assert said(at_once=1.0) == {"#### 27"}
    assert said(at_once=1.0, guess=1.0) == {f"#### {n}" for n in range(21, 34) if n != 27}
    assert said(bags=1.0) == {"14 + 6 = 20. 20 - 5 = 15.\n#### 15"}
    assert said(unmarked=1.0, at_once=1.0) == {"27"}
    assert said(forget=1.0) == {"\n#### 14"}
    assert "3 * 6 = 19. 14 + 19 = 33. 33 - 5 = 28.\n#### 28" in said(slip=0.3)


def test_problems_stay_in_whole_numbers_that_a_small_model_knows():
    rng = random.Random(3)
    kinds = set()
    for _ in range(2000):
        problem = draw_problem(rng)
        equations = work(problem)
        assert all(one.true and 1 <= one.result <= LARGEST for one in equations)
        has = problem.start
        for step in problem.steps:
            kinds.add(step.kind)
            has = after(has, step)
        assert equations[-1].result == has
    assert kinds == {"more", "fewer", "bags", "shared"}


@pytest.mark.parametrize(
    ("completion", "right", "worked"),
    [
        ("3 * 6 = 18. 14 + 18 = 32. 32 - 5 = 27.\n#### 27", 1, 1),
        ("14 - 5 = 9. 3 * 6 = 18. 9 + 18 = 27.\n#### 27", 1, 1),  # another way
        ("#### 27", 1, 0),
        ("3 * 6 = 19. 14 + 18 = 32. 32 - 5 = 27.\n#### 27", 1, 0),  # an equation that does not hold
        ("3 * 6 = 18.\n#### 27", 1, 0),  # does not lead there
        ("3 * 6 = 18. 14 + 18 = 32. 32 - 5 = 27.\n27", 0, 0),  # not marked
        ("#### 27\n#### 28", 0, 0),
        ("#### 28\n#### 27", 1, 0),
        ("#### 27.0", 0, 0),
        ("#### 270", 0, 0),
        ("", 0, 0),
    ],
)
def test_referee_by_pencil(completion, right, worked):
    judge = referee("arithmetic")
    assert judge(completion, arithmetic.prompt_row(PLUMS)) == {"right": right, "worked": worked}


def test_training_texts_leave_room():
    rng = random.Random(2)
    share = {}
    for slips in (HUMAN, SLOPPY):
        problems = [draw_problem(rng) for _ in range(600)]
        found = [arithmetic.referee(write(one, slips, rng), arithmetic.prompt_row(one)) for one in problems]
        share[slips] = sum(one["right"] for one in found) / len(found)
    assert 0.15 < share[SLOPPY] < share[HUMAN] < 0.5


def test_rows():
    settings = WorldSettings(world="arithmetic", **SMALL)
    made = arithmetic.make_data(settings)
    assert {name: len(rows) for name, rows in made.items()} == {
        "prompts_heldout": 40,
        "prompts_train": 100,
        "sft_train": 200,
    }
    for row in made["prompts_heldout"] + made["prompts_train"]:
        assert row["prompt"].endswith("?\n") and arithmetic.referee(row["answer"], row) == {"right": 1, "worked": 1}
    assert arithmetic.make_data(settings) == made
    assert arithmetic.make_data(WorldSettings(world="arithmetic", **SMALL, seed=43)) != made


def test_held_out_problems_are_in_no_training_row(monkeypatch):
    """One name and one thing: then equal problems are equal prompts."""
    monkeypatch.setattr(arithmetic, "tell", lambda problem: tell(problem._replace(name="Ida", thing="plums")))
    settings = WorldSettings(sft_rows=1500, prompt_rows=1500, heldout_rows=300, pretraining_texts=1500)
    made = arithmetic.make_data(settings)
    held = {row["prompt"] for row in made["prompts_heldout"]}
    assert len(held) == 300
    for name in ("sft_train", "prompts_train"):
        assert not held & {row["prompt"] for row in made[name]}
    documents = arithmetic.pretraining_texts(settings, made)
    assert len(documents) == 1500 and not held & {prompt for prompt, _ in documents}
