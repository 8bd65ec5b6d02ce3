"""TRL's own rewards by name: what TRL's function says, in our trainer and out of it; and functions of the user's."""

import sys

import pytest
import toy
import trl.rewards
from datasets import Dataset
from toy import EOS, A, B

from rewards import RewardError, build_rewards
from rewards.trl_rewards import NAMES

SPECS = [
    {"name": "accuracy_reward", "column": "number"},
    {"name": "reasoning_accuracy_reward", "column": "number", "reasoning_delimiters": ["a"]},
    {"name": "think_format_reward"},
    {"name": "cosine_scaled_reward", "column": "number", "max_len": 8},
    {"name": "repetition_penalty_reward", "ngram_size": 1, "max_penalty": -0.5},
    {"name": "soft_overlong_punishment", "max_completion_len": 4, "soft_punish_cache": 4},
]


def test_every_reward_of_trls_has_a_name():
    assert set(NAMES.values()) == {name for names in trl.rewards._import_structure.values() for name in names}
    assert {spec["name"] for spec in SPECS} == set(NAMES)


def test_they_say_what_trl_says_of_messages_and_of_text():
    texts = [r"So \boxed{\frac{1}{3}}", r"<think>hm</think>So \boxed{0.5}", "a a a b"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    ids, solutions = [[5, 6, 7, 8], [5, 5, 5, 5], [1] * 8], [r"\frac{1}{3}"] * 3
    columns = {"number": solutions, "completion_ids": ids}
    expected = {
        "accuracy_reward": trl.rewards.accuracy_reward(messages, solutions),
        "reasoning_accuracy_reward": [0.0, 0.0, 0.0],
        "think_format_reward": [0.0, 1.0, 0.0],
        "cosine_scaled_reward": trl.rewards.get_cosine_scaled_reward(8)(messages, solutions, ids),
        "repetition_penalty_reward": [0.0, -0.5 * 3 / 4, -0.5 * 7 / 8],
        "soft_overlong_punishment": [-1.0, -1.0, -1.0],
    }
    specs = [{k: v for k, v in spec.items() if k != "reasoning_delimiters"} for spec in SPECS]
    for reward, _ in build_rewards(specs):
        for completions in (messages, texts):
            assert reward(["p"] * 3, completions, **columns) == pytest.approx(expected[reward.__name__]), reward


def test_each_of_them_in_our_trainer(tmp_path):
    rewards = build_rewards(SPECS)
    prompts = toy.PROMPTS[:4]
    trainer = toy.make_trainer(
        tmp_path,
        reward=[reward for reward, _ in rewards],
        prompts=prompts,
        columns={"number": ["5", "6", None, "7"]},
        rollout_func=toy.canned(dict.fromkeys(prompts, [A, B, A, EOS])),
        gradient_accumulation_steps=1,
    )
    trainer.train()
    means = {name: toy.logged(trainer, f"score/{name}")[-1] for name in NAMES}
    assert means == pytest.approx(
        {
            "accuracy_reward": 0.0,
            "reasoning_accuracy_reward": 0.0,
            "think_format_reward": 0.0,
            "cosine_scaled_reward": -0.75,  # wrong, at half of max_len: the middle of -1 and -0.5
            "repetition_penalty_reward": -0.5 / 4,  # 3 of 4 are different
            "soft_overlong_punishment": -1.0,  # (4 - 4 - 4) / 4
        }
    )


MINE = """
import asyncio
def longer(prompts, completions, than=3, **columns):
    return [float(len(text) > than) for text in completions]
async def asked(prompts, completions, number, factor=1.0, **columns):
    await asyncio.sleep(0)
    return [factor * len(text) if n else None for text, n in zip(completions, number)]
class Counting:
    def __init__(self, letter): self.letter, self.__name__ = letter, "counting"
    async def __call__(self, prompts, completions, **columns):
        return [float(text.count(self.letter)) for text in completions]
"""


@pytest.mark.parametrize("trainer", ["ours", "trl"])
def test_functions_of_the_users_with_arguments_async_ones_too(tmp_path, monkeypatch, trainer):
    (tmp_path / "my_rewards.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    specs = [
        {"name": "my_rewards:longer", "than": 2},
        {"name": "my_rewards:asked", "factor": 0.5},
        {"name": "my_rewards:asked", "factor": 2.0, "weight": 0.0},
        {"name": "my_rewards:asked", "log_name": "again"},
        {"name": "my_rewards:Counting", "letter": "a"},
        {"name": "my_rewards:Counting", "letter": "b", "log_name": "letters"},
    ]
    rewards, weights = zip(*build_rewards(specs), strict=True)
    prompts = toy.PROMPTS[:4]
    rollout = toy.canned(dict.fromkeys(prompts, [A, B, A, EOS]))
    columns = {"number": [1, 2, None, 4]}
    if trainer == "ours":
        made = toy.make_trainer(
            tmp_path / "out",
            reward=list(rewards),
            prompts=prompts,
            columns=columns,
            rollout_func=rollout,
            reward_weights=list(weights),
            gradient_accumulation_steps=1,
        )
    else:
        args = trl.GRPOConfig(
            str(tmp_path / "out"),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            use_cpu=True,
            max_completion_length=6,
            logging_steps=1,
            bf16=False,
            report_to="none",
            save_strategy="no",
            reward_weights=list(weights),
        )
        made = trl.GRPOTrainer(
            toy.build_model(),
            list(rewards),
            args,
            Dataset.from_dict({"prompt": prompts, **columns}),
            processing_class=toy.tokenizer(),
            rollout_func=rollout,
        )
    made.train()
    expected = {"longer": 1.0, "asked": 1.5, "asked_2": 6.0, "again": 3.0, "counting": 2.0, "letters": 1.0}
    key = "score/{}" if trainer == "ours" else "rewards/{}/mean"
    assert {name: toy.logged(made, key.format(name))[-1] for name in expected} == expected
    sys.modules.pop("my_rewards")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"name": "cosine_scaled_reward"}, "TRL refuses its options: .*max_len"),
        ({"name": "cosine_scaled_reward", "max_lem": 3}, "no option 'max_lem' .did you mean 'max_len'"),
        ({"name": "repetition_penalty_reward", "max_penalty": 1.0}, "TRL refuses its options: max_penalty 1.0"),
        ({"name": "think_format_reward", "column": "x"}, "it reads no column"),
        ({"name": "acuracy_reward"}, "did you mean 'accuracy_reward'"),
    ],
)
def test_options_that_are_wrong(spec, says):
    with pytest.raises(RewardError, match=says):
        build_rewards([spec])


def test_what_they_are_not_given_is_named():
    (accuracy, _), (punishment, _) = build_rewards([SPECS[0], SPECS[-1]])
    with pytest.raises(RewardError, match="no column 'number'; it has answer"):
        accuracy(["p"], ["5"], answer=["5"])
    with pytest.raises(RewardError, match="must hold a text or a number"):
        accuracy(["p"], ["5"], number=[["5"]])
    with pytest.raises(RewardError, match="needs completion_ids"):
        punishment(["p"], ["5"])
