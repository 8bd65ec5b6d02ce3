"""Rewards that fail, hang back or say nonsense: the row is reported and left out, and nothing becomes 0 in silence."""

import asyncio
import logging
import math

import pytest
import toy
from toy import ANSWERS

from rewards import RewardError
from rewards.asking import ask, ask_async, is_async

PROMPTS = ["one", "two", "three"]


def numbers(prompts, completions, values, **columns):
    """Fails for the whole batch as soon as one value is bad, as a batched reward does."""
    return [1.0 / v for v in values]


async def numbers_later(prompts, completions, values, **columns):
    await asyncio.sleep(0)
    return [1.0 / v for v in values]


def asked(function, prompts=PROMPTS, tokens=False, **columns):
    if is_async(function):
        return asyncio.run(ask_async(function, prompts, prompts, columns))
    return ask(function, prompts, prompts, columns, tokens=tokens)


def reports(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "rewards.asking"]


@pytest.mark.parametrize("function", [numbers, numbers_later])
def test_the_row_that_fails_is_reported_and_left_out(caplog, function):
    name = function.__name__
    assert asked(function, values=[2, 0, 4], other="not a column") == [0.5, None, 0.25]
    assert reports(caplog) == [
        f"Reward '{name}' failed for the prompt 'two', which goes without it: "
        "ZeroDivisionError: float division by zero."
    ]


@pytest.mark.parametrize("function", [numbers, numbers_later])
def test_a_reward_that_fails_everywhere_stops_with_the_cause(function):
    with pytest.raises(RewardError, match="failed for every completion: ZeroDivisionError: float division") as error:
        asked(function, values=[0, 0, 0])
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_reward_that_fails_only_for_all_together(caplog):
    def small_batches(prompts, completions, **columns):
        if len(prompts) > 2:
            raise MemoryError("too many")
        return [1.0] * len(prompts)

    assert asked(small_batches) == [1.0, 1.0, 1.0]
    assert reports(caplog) == [
        "Reward 'small_batches' failed for all rows together, but for none alone: MemoryError: too many."
    ]


def test_nan_is_reported_and_none_is_a_legal_answer(caplog):
    def some(prompts, completions, **columns):
        return [1, None, float("nan")]

    assert asked(some) == [1.0, None, None]
    assert reports(caplog) == ["Reward 'some' returned NaN for the prompt 'three'; the row goes without it."]


def test_token_rewards_with_nan(caplog):
    def tokens(prompts, completions, **columns):
        return [[1, 2], None, (0.5, math.nan)]

    assert asked(tokens, tokens=True) == [[1.0, 2.0], None, None]
    assert len(reports(caplog)) == 1


@pytest.mark.parametrize(
    "answer, words",
    [
        ([1.0], "returned 1 scores for 3 completions"),
        (["a", 1.0, 1.0], "returned 'a' for the prompt 'one'"),
        ([1.0, "2", 1.0], "returned '2' for the prompt 'two'"),
        (1.0, "returned 1.0; return a list"),
        (None, "returned None; return a list"),
        ("abc", "returned 'abc'; return a list"),
        ([1.0, {}, 1.0], "for the prompt 'two'"),
    ],
)
def test_answers_that_are_no_scores(answer, words):
    with pytest.raises(RewardError, match=words) as error:
        asked(lambda prompts, completions, **columns: answer)
    assert "\n" not in str(error.value)


def test_an_error_about_the_settings_is_not_asked_row_by_row():
    calls = []

    def wrong(prompts, **columns):
        calls.append(len(prompts))
        raise RewardError("Reward 'wrong': the data has no column 'x'.")

    with pytest.raises(RewardError, match="no column 'x'"):
        asked(wrong)
    assert calls == [3]


def test_long_prompts_are_cut_in_reports(caplog):
    asked(lambda prompts, **columns: [math.nan] * len(prompts), prompts=["x" * 500])
    assert len(reports(caplog)[0]) < 200


# ---------------------------------------------------------------- in the trainer
def test_a_failing_row_in_training(tmp_path, caplog):
    def fragile(prompts, completions, **columns):
        if "ede" in prompts:
            raise RuntimeError("no answer from the server")
        return [2.0] * len(prompts)

    trainer = toy.make_trainer(tmp_path, reward=[fragile, toy.letters], rollout_func=toy.canned(ANSWERS))
    with caplog.at_level(logging.WARNING):
        batch = toy.sample(trainer)
    assert "failed for the prompt 'ede'" in caplog.text and "no answer from the server" in caplog.text
    notes = trainer.journal.read()
    # letters are 1, 0, 0, 2, -1, 0, 0, 1: eight of them, fragile spoke for seven
    assert (notes["score/fragile"], notes["score"]) == (2.0, pytest.approx((7 * 2 + 3) / 8))
    assert batch["loss_mask"][2].sum() == 1  # letters still speak for it


def test_async_rewards_run_side_by_side(tmp_path):
    """Each waits until the other has begun: one after the other they would wait for ever."""
    begun = {"a": None, "b": None}

    def make(mine, other):
        async def reward(prompts, completions, **columns):
            begun[mine].set()
            await asyncio.wait_for(begun[other].wait(), timeout=30)
            return [1.0] * len(prompts)

        reward.__name__ = mine
        return reward

    trainer = toy.make_trainer(tmp_path, reward=[make("a", "b"), make("b", "a")], rollout_func=toy.canned(ANSWERS))
    for name in begun:
        begun[name] = asyncio.Event()
    toy.sample(trainer)
    notes = trainer.journal.read()
    assert (notes["score/a"], notes["score/b"], notes["score"]) == (1.0, 1.0, 2.0)


def test_a_reward_that_never_works_stops_the_run_with_the_cause(tmp_path):
    def broken(prompts, completions, **columns):
        return [columns["typo"] for _ in prompts]

    trainer = toy.make_trainer(tmp_path, reward=[broken, toy.letters])
    with pytest.raises(RewardError, match="'broken' failed for every completion: KeyError: 'typo'"):
        trainer.train()
