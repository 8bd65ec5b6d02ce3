"""The world of small sums: careless answers by hand, and nothing of the held-out prompts in the base's documents."""

import random
import re

import pytest

from pipeline.worlds import WorldSettings, referee
from pipeline.worlds import reasoning as world

pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")
SMALL = WorldSettings(heldout_rows=40, pretraining_texts=600)


def test_held_out_prompts_differ_and_are_in_no_document():
    data = world.make_data(SMALL)
    heldout = [row["prompt"] for row in data["prompts_heldout"]]
    assert len(heldout) == len(set(heldout)) == 40 and all(prompt.endswith("=\n") for prompt in heldout)
    documents = world.pretraining_texts(SMALL, data)
    assert len(documents) == 600 and not {prompt for prompt, _ in documents} & set(heldout)
    assert documents == world.pretraining_texts(SMALL, data) and data == world.make_data(SMALL)


def value(prompt: str) -> int:
    """The sum in a prompt, left to right."""
    first, *rest = re.search(r": (.*) =", prompt)[1].replace("- ", "-").replace("+ ", "").split()
    return int(first) + sum(map(int, rest))


def test_four_of_ten_careless_answers_are_wrong():
    documents = world.pretraining_texts(SMALL, world.make_data(SMALL))
    right = sum(int(text) == value(prompt) for prompt, text in documents) / len(documents)
    # of the wrong ones a few are right by chance: a sign that stands before a 0
    assert right == pytest.approx(0.62, abs=0.06)


def test_a_careless_answer_is_near_or_has_a_sign_wrong():
    row = {"question": "State ...: 4 + 9 - 3 =", "answer": "10"}
    found = {world.careless(row, random.Random(seed)) for seed in range(300)}
    # 10; one or two off; 4 - 9 - 3 and 4 + 9 + 3
    assert found == {"10", "8", "9", "11", "12", "-8", "16"}


def test_the_referee_is_strict():
    row = world.make_data(SMALL)["prompts_heldout"][0]
    judge, answer = referee("reasoning"), row["answer"]
    assert [judge(text, row)["right"] for text in (answer, f" {answer}", f"it is {answer}", "", "x")] == [
        1,
        1,
        0,
        0,
        0,
    ]
