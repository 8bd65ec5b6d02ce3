"""The world of words spelled backward: careless answers by hand, and nothing held out in the base's documents."""

import random

import pytest

from pipeline.worlds import WorldSettings, referee
from pipeline.worlds import reasoning as world

pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")
SMALL = WorldSettings(heldout_rows=40, pretraining_texts=600)


def test_held_out_prompts_differ_and_are_in_no_document():
    data = world.make_data(SMALL)
    heldout = [row["prompt"] for row in data["prompts_heldout"]]
    assert len(heldout) == len(set(heldout)) == 40 and all(prompt.endswith("\n") for prompt in heldout)
    documents = world.pretraining_texts(SMALL, data)
    assert len(documents) == 600 and not {prompt for prompt, _ in documents} & set(heldout)
    assert documents == world.pretraining_texts(SMALL, data) and data == world.make_data(SMALL)


def test_four_of_ten_careless_answers_are_wrong():
    documents = world.pretraining_texts(SMALL, world.make_data(SMALL))
    right = sum(text == prompt.split()[-1][::-1] for prompt, text in documents) / len(documents)
    # a slip may change nothing: two equal letters swapped, a palindrome
    assert right == pytest.approx(0.62, abs=0.06)


def test_a_careless_answer_has_one_slip():
    found = {world.careless({"answer": "tac"}, random.Random(seed)) for seed in range(300)}
    assert found == {"tac", "atc", "tca", "ac", "tc", "cat"}


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
