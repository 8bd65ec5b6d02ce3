"""What counts as the answer of a reward: one rule, whoever asks."""

import asyncio
from collections import deque
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from datasets import Dataset
from toy import ANSWERS, PROMPTS
from trl import GRPOConfig

from pipeline.chat import speakers
from pipeline.errors import UserError
from pipeline.exam.evaluation import answer_and_score
from pipeline.rollouts.scoring import Scoring
from pipeline.stages.trl_stage import CountedGRPO
from rewards import Instant, Mixture, RewardError, Shaped, build_rewards, token_rewards_of
from rewards.asking import ask, guarded

TEXTS = ["ab", "c"]
NUMBERS = [0.5, None]
# one answer in every form that is one: 0.5 for the first completion, nothing for the second
TAKEN = {
    "list": [0.5, None],
    "tuple": (0.5, None),
    "deque": deque([0.5, None]),
    "NaN": [0.5, float("nan")],
    "array": np.array([0.5, np.nan]),
    "array of objects": np.array([0.5, None], dtype=object),
    "tensor": torch.tensor([0.5, torch.nan]),
    "tensor with a gradient": torch.tensor([0.5, torch.nan], requires_grad=True),
    "half a tensor": torch.tensor([0.5, torch.nan], dtype=torch.bfloat16),
    "Series": pd.Series([0.5, None], index=["b", "a"]),
    "scalars of numpy": [np.float32(0.5), np.float64("nan")],
    "tensors without a dimension": [torch.tensor(0.5), None],
    "arrays without a dimension": [np.array(0.5), None],
    "Decimal": [Decimal("0.5"), Decimal("NaN")],
    "Fraction": [Fraction(1, 2), None],
}
REFUSED = {
    "column of an array": (np.array([[0.5], [1.0]]), "returned a ndarray of the shape (2, 1)"),
    "column of a tensor": (torch.tensor([[0.5], [1.0]]), "returned a Tensor of the shape (2, 1)"),
    "list of lists": ([[0.5], [1.0]], "returned [0.5] for"),
    "list of arrays": ([np.array([0.5]), np.array([1.0])], "returned a ndarray of the shape (1,) for"),
    "list of tensors": ([torch.tensor([0.5]), 1.0], "returned a Tensor of the shape (1,) for"),
    "set": ({0.5, 1.0}, "returned {0.5, 1.0}; return a list"),
    "dict": ({0: 0.5, 1: 1.0}, "returned {0: 0.5, 1: 1.0}; return a list"),
    "values of a dict": ({0: 0.5, 1: 1.0}.values(), "returned dict_values([0.5, 1.0]); return a list"),
    "generator": ((x for x in (0.5, 1.0)), "returned <generator object"),
    "DataFrame": (pd.DataFrame({"x": [0.5, 1.0]}), "returned a DataFrame of the shape (2, 1)"),
    "one number": (0.5, "returned 0.5; return a list"),
    "one number of numpy": (np.float32(0.5), "returned np.float32(0.5); return a list"),
    "tensor without a dimension": (torch.tensor(0.5), "returned tensor(0.5000); return a list"),
    "text": ("ab", "returned 'ab'; return a list"),
    "bytes": (b"12", "returned b'12'; return a list"),
    "texts": (["0.5", "1"], "returned '0.5' for"),
    "bytes as numbers": ([b"0.5", 1.0], "returned b'0.5' for"),
    "dicts": ([{"score": 0.5}, 1.0], "returned {'score': 0.5} for"),
    "complex": ([1j, 1.0], "returned 1j for"),
    "too large": ([10**400, 1.0], "returned 1000"),
    "one too few": ([0.5], "returned 1 scores for 2 completions"),
    "nothing": (None, "returned None; return a list"),
}  # fmt: skip


def of(answer, name="mine"):
    """A reward that gives `answer`, as far as it is asked about both completions."""

    def reward(prompts, completions, **columns):
        return answer

    reward.__name__ = name
    return reward


# ---------------------------------------------------------------- who asks
def in_training(reward):
    [function] = Scoring([reward], ["mine"], toy.tokenizer(), TEXTS, [[3], [4]]).functions
    return function(prompts=["c", "d"], completions=TEXTS)


def explained(reward):
    scoring = Scoring([reward], ["mine"], toy.tokenizer(), TEXTS, [[3], [4]])
    scores = scoring.ask({"prompts": ["c", "d"], "completions": TEXTS})[:, 0].tolist()
    scores = [None if s != s else s for s in scores]
    return scores


def in_an_exam(reward):
    return guarded(reward)(["c", "d"], TEXTS)


def in_a_chat(reward):
    run = SimpleNamespace(rewards=[(reward, 1.0)], referee=None, conversational=False)
    scores, reasons = speakers._score(run, ["c", "d"], TEXTS, [[3], [4]], {})
    if reasons:
        raise RewardError(reasons[0])
    return scores["mine"]


def clipped(reward):
    return Shaped(reward, clip=[-9, 9])(["c", "d"], TEXTS)


def mixed(reward):
    return Mixture([{"name": reward}])(["c", "d"], TEXTS)


def paid(reward):
    """At the last token; the sum is the score."""
    return [row and sum(row) for row in token_rewards_of(reward, ["c", "d"], TEXTS, [[3, 4], [5]], [[1, 2], [1]])]


def instant(reward):
    """Payments for each word, of which there is one."""
    return paid(Instant(reward))


ASKING = [in_training, explained, in_an_exam, in_a_chat, clipped, mixed, paid, instant]


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("form", TAKEN)
def test_every_form_of_the_same_answer(asking, form):
    assert asking(of(TAKEN[form])) == NUMBERS


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_answer_is_refused_in_one_sentence(asking, form):
    answer, says = REFUSED[form]
    with pytest.raises(RewardError) as error:
        asking(of(answer))
    assert str(error.value).startswith("Reward 'mine': it returned") and says in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_true_is_one():
    assert ask(of([True, np.bool_(False)]), ["c", "d"], TEXTS, {}) == [1.0, 0.0]


def test_numbers_for_each_token():
    class Each:
        def __init__(self, answer):
            self.answer = answer

        def __call__(self, prompts, completions, **columns):
            return [0.5, 1.0]

        def token_rewards(self, prompts, completions, **columns):
            return self.answer

    def payments(answer, ids=((3, 4), (5, 6))):
        return token_rewards_of(Each(answer), ["c", "d"], TEXTS, ids, [None, None])

    for answer in (
        [[0.5, 0.0], None],
        (np.array([0.5, 0.0]), None),
        [torch.tensor([0.5, 0.0]), [float("nan"), 1.0]],
        np.array([[0.5, 0.0], [np.nan, 1.0]]),
    ):
        assert payments(answer) == [[0.5, 0.0], None]
    for answer, says in (
        ([[0.5], None], "token_rewards gave 1 numbers for the 2 tokens of completion 0"),
        ([0.5, None], "token_rewards gave one number for completion 0"),
        ([{0.5}, None], "token_rewards returned {0.5} for completion 0"),
        ([["0.5", 0.0], None], "token_rewards returned '0.5' for completion 0"),
        (torch.zeros(2, 2, 1), "token_rewards returned a Tensor of the shape (2, 2, 1)"),
        ([[0.5, 0.0]], "token_rewards returned 1 scores for 2 completions"),
    ):
        with pytest.raises(RewardError) as error:
            payments(answer)
        assert says in str(error.value)


# ---------------------------------------------------------------- in the trainers, and by hand
ROLLOUT = len(PROMPTS)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (np.ones(ROLLOUT), None),
        (np.ones((ROLLOUT, 1)), r"shape \(8, 1\)"),
        ({*range(ROLLOUT)}, "a list with one number"),
    ],
)
def test_ppo_grpo_and_the_exam_agree(tmp_path, answer, says):
    data = Dataset.from_dict({"prompt": list(PROMPTS)})
    config = GRPOConfig(
        str(tmp_path / "grpo"),
        per_device_train_batch_size=ROLLOUT,
        num_generations=2,
        max_completion_length=3,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    grpo = CountedGRPO(
        toy.build_model(), of(answer), config, data, processing_class=toy.tokenizer(), peft_config=toy.lora()
    )
    ppo = toy.make_trainer(tmp_path / "ppo", reward=of(answer), rollout_func=toy.canned(ANSWERS))
    settings = {"max_new_tokens": 3, "eos_token_ids": [toy.EOS], "batch_size": ROLLOUT}
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    ways = [
        lambda: grpo._calculate_rewards(rows, list(PROMPTS), list(PROMPTS), [[toy.A]] * ROLLOUT)[:, 0].tolist(),
        lambda: toy.sample(ppo) and ppo._scores_per_reward[:, 0].tolist(),
        lambda: answer_and_score(ppo.model, toy.tokenizer(), rows, {"mine": of(answer)}, None, **settings).scores[
            "mine"
        ],
    ]
    for way in ways:
        if says is None:
            assert way() == [1.0] * ROLLOUT
        else:
            with pytest.raises(RewardError, match=f"Reward 'mine': it returned .*{says}"):
                way()
    assert grpo.reward_funcs[0].__name__ == "mine"  # as it was


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, pd.Series, lambda x: list(map(Decimal, x))])
def test_scores_given_by_hand(tmp_path, kind):
    trainer = toy.make_trainer(tmp_path, prompts=None, total_episodes=ROLLOUT, num_iterations=1)
    logs = trainer.step(PROMPTS, [ANSWERS[prompt] for prompt in PROMPTS], kind([1.0] * 4 + [0.0] * 4))
    assert logs["score"] == 0.5


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (set(range(ROLLOUT)), r"scores: step\(\) got \{0, 1, .*; give a list with one number for each completion"),
        (np.ones((ROLLOUT, 1)), "scores.0. has 1 numbers, but its completion has 2 tokens"),
        (["1"] * ROLLOUT, r"step\(\) got '1' for completion 0; give a number, or None"),
        ((1.0 for _ in PROMPTS), r"step\(\) got <generator"),
        (1.0, r"step\(\) got 1.0; give a list"),
    ],
)
def test_what_is_no_score_given_by_hand(tmp_path, scores, says):
    trainer = toy.make_trainer(tmp_path, prompts=None, total_episodes=ROLLOUT, num_iterations=1)
    with pytest.raises(UserError, match=says):
        trainer.step(PROMPTS, [ANSWERS[prompt] for prompt in PROMPTS], scores)


def test_an_async_reward_is_asked_by_the_same_rule():
    async def later(prompts, completions, **columns):
        await asyncio.sleep(0)
        return np.array([[0.5], [1.0]])

    for asking in (explained, in_an_exam):
        with pytest.raises(RewardError, match=r"Reward '(later|mine)': it returned a ndarray of the shape \(2, 1\)"):
            asking(later)
    [(kept, _)] = build_rewards([{"name": later}])
    assert kept is later
