"""Columns of the data, and what else a reward knows by a name: options, TRL's own arguments, pictures."""

import asyncio
import functools
import json

import pytest
from conftest import build_model
from datasets import Dataset
from peft import LoraConfig
from short_runs import SETTINGS

from pipeline.chat import speakers
from pipeline.config import DataArguments, ModelArguments
from pipeline.data import loading as data
from pipeline.errors import UserError
from pipeline.eval.judges import both_orders, means, read_judges
from pipeline.exam import evaluation
from pipeline.exam.exam import Exam, RewardArguments
from pipeline.ilql import data as offline
from pipeline.ppo import PPOConfig, PPOTrainer
from pipeline.stages import ppo as ppo_stage
from pipeline.stages import trl_stage
from rewards import Instant, Mixture, Shaped, WeightedReward, build_rewards, token_rewards_of
from rewards.asking import ask, columns_of, guarded
from rewards.base import RESERVED

WORDS = [f"w{i}" for i in range(8)]
# Columns of the names that a reward knows otherwise, and of those that TRL takes for pictures
TAKEN = {name: "of the data" for name in sorted(RESERVED - {"prompt", "completion"})}
PICTURES = {"image": "a.png", "images": ["a.png"]}


def near(prompts, completions, target=5, **columns):
    """Minus how far the length is from `target`; a column hands a list, an option a number."""
    targets = target if isinstance(target, list) else [target] * len(completions)
    return [-abs(len(_text(text)) - goal) for text, goal in zip(completions, targets, strict=True)]


async def near_later(prompts, completions, target=5, **columns):
    await asyncio.sleep(0)
    return near(prompts, completions, target, **columns)


class Near:
    def __init__(self, target):
        self.target = target

    def __call__(self, prompts, completions, **columns):
        assert columns.get("target", [3] * len(completions)) == [3] * len(completions)
        return near(prompts, completions, self.target)


def _text(completion) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def wants(prompts, completions, completion_ids, facts, **columns):
    """Fails unless every argument is what it is called."""
    assert all(isinstance(ids, list) and isinstance(ids[0], int) for ids in completion_ids)
    for name in ("prompts", "completions", "self", "token_ends", "environments"):
        assert columns.get(name) != ["of the data"] * len(completions), name
    for name in ("trainer_state", "log_extra", "log_metric"):
        assert not isinstance(columns.get(name), list), name
    return [float(len(_text(text))) for text in completions]


# ------------------------------------------------------------ an option against a column of its name
FIVE = ["12345", "1234567"]
ASK = {"prompts": ["p", "p"], "completions": FIVE, "target": [3, 3]}


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "test_columns:near", "target": 7},
        {"name": "test_columns:Near", "target": 7},
        {"name": functools.partial(near, target=7)},
        {"name": functools.partial(near, target=7), "log_name": "other"},
        {"name": "test_columns:near", "target": 7, "normalize": "none", "clip": [-100, 0]},
        {"name": "mixture", "rewards": [{"name": "test_columns:near", "target": 7}]},
        {"name": "test_columns:near", "target": 7, "instant": "words"},
    ],
)
def test_an_option_is_not_replaced_by_a_column_of_its_name(spec):
    [(reward, _)] = build_rewards([spec])
    assert reward(**ASK) == [-2, 0]  # by pencil: the column's 3 would give -2 and -4
    columns = {key: value for key, value in ASK.items() if key == "target"}
    assert ask(reward, ASK["prompts"], FIVE, columns) == guarded(reward)(**ASK) == [-2, 0]
    ids, ends = [[1, 2]] * 2, [[2, len(text)] for text in FIVE]
    paid = token_rewards_of(reward, ["p", "p"], FIVE, ids, ends, **columns)
    assert [sum(row) for row in paid] == [-2, 0]


def test_a_parameter_without_an_option_is_the_column():
    [(reward, _)] = build_rewards(["test_columns:near"])
    assert reward(**ASK) == [-2, -4]


def test_an_option_of_an_async_function_stays_too():
    [(reward, _)] = build_rewards([{"name": "test_columns:near_later", "target": 7}])
    assert guarded(reward)(**ASK) == [-2, 0]


@pytest.mark.parametrize(
    "wrap", [Shaped, Instant, lambda f: Mixture([f]), lambda f: Mixture([WeightedReward(f, 1.0)])]
)
def test_wrappers_in_python_keep_the_options_of_a_partial(wrap):
    assert wrap(functools.partial(near, target=7))(**ASK) == [-2, 0]


def test_a_trainer_in_python_keeps_the_options_of_a_partial(tmp_path, tiny_tokenizer):
    args = PPOConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        total_episodes=4,
        num_iterations=1,
        max_completion_length=4,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    rows = [{"prompt": f"say {word}", "target": 10**6, "reward": 1.0, "function": "f"} for word in WORDS]
    trainer = PPOTrainer(
        build_model(),
        functools.partial(near, target=0),
        args,
        Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    trainer.train()
    assert -100 < trainer.state.log_history[0]["score/near"] <= 0  # by the column it would be about -10⁶


def test_a_column_may_be_called_as_our_own_arguments_are():
    """`reward`, `function`, `name`: what our helpers call theirs is nobody's business."""
    columns = {name: ["x", "x"] for name in ("reward", "function", "name", "columns", "rows", "row", "weight", "at")}
    for instant in (False, True, "words"):
        [(reward, _)] = build_rewards([{"name": "length", "max": 3, "unit": "characters", "instant": instant}])
        assert ask(reward, ["p", "p"], FIVE, columns) == pytest.approx([-2 / 3, -1.0])  # 2 over 3; at most all
        paid = token_rewards_of(reward, ["p", "p"], FIVE, [[1, 2]] * 2, [[2, 5], [2, 7]], **columns)
        assert [sum(row) for row in paid] == pytest.approx([-2 / 3, -1.0])


def test_judges_keep_their_options_and_their_sides():
    def second_is(prompts, completions_a, completions_b, target="", **columns):
        assert set(columns) == {"facts"}
        return [float(text == target) for text in completions_a]

    rows = [{"prompt": "p", "facts": 1, "target": "no", "completions": 0, "completions_a": 0, "prompts": 0}]
    judges = read_judges([{"name": functools.partial(second_is, target="yes")}], list(rows[0]))
    assert means(both_orders(judges["second_is"], "it", rows, ["yes"], ["other"])) == [1.0]


# ------------------------------------------------------------ columns with a meaning of their own
def test_a_reward_is_handed_columns_by_names_that_are_free():
    rows = [{"prompt": "p", "completion": "c", "facts": n, **TAKEN, **PICTURES} for n in (1, 2)]
    assert columns_of(rows) == {"facts": [1, 2], "image": ["a.png"] * 2, "images": [["a.png"]] * 2}


def test_what_rewards_do_not_get_is_said_before_anything_runs(tiny_tokenizer):
    rows, told = Dataset.from_list([{"prompt": "p", "completions": "x", "self": 1, "image": None}]), []
    data.show_examples(rows, None, tiny_tokenizer, "prompts", None, log=told.append)
    assert told[1:3] == [
        "note: models here read text alone: image treated like any other column; the rewards get them",
        "note: rewards do not get completions, self: such a name means something else to them; rename it",
    ]


def messages(word: str) -> list[dict]:
    return [{"role": "user", "content": word}]


TRAINERS = {
    "ppo": (PPOTrainer, PPOConfig),
    "grpo": (trl_stage.CountedGRPO, trl_stage.GRPOStage),
    "rloo": (trl_stage.CountedRLOO, trl_stage.RLOOStage),
}


@pytest.mark.parametrize("prompt", ["say {}\n".format, messages])
@pytest.mark.parametrize("algorithm", TRAINERS)
def test_such_columns_are_columns_or_nothing_in_every_trainer(tmp_path, tiny_tokenizer, algorithm, prompt):
    pictures = PICTURES if prompt is messages else dict.fromkeys(PICTURES)
    rows = [{"prompt": prompt(word), "facts": word, **TAKEN, **pictures} for word in WORDS]
    trainer, config = TRAINERS[algorithm]
    args = config(**SETTINGS | {"num_iterations": 1, "max_steps": 1, "output_dir": str(tmp_path), "report_to": "none"})
    seen = []

    def reward(prompts, completions, image, images, **columns):
        seen.extend(zip(image, images, strict=True))
        return wants(prompts, completions, **columns)

    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    made = trainer(build_model(), reward, args, Dataset.from_list(rows), None, tiny_tokenizer, peft_config=lora)
    made.train()
    assert seen == [(pictures["image"], pictures["images"])] * 4


def test_offline_data_and_chat_hand_over_the_same_columns(tiny_tokenizer):
    rows = [{"prompt": "p", "completion": "abc", "facts": "f", **TAKEN, **PICTURES, "completion_ids": [1]}]
    tokenized = offline.tokenize(Dataset.from_list(rows), tiny_tokenizer, 64)
    weighted = build_rewards([{"name": wants}])
    scored = offline.score(tokenized, tiny_tokenizer, weighted, None)
    assert scored.means["wants"] == 3.0
    run = speakers.Run(
        **dict.fromkeys(speakers.Run.__dataclass_fields__) | {"rewards": weighted, "conversational": False}
    )
    scores, reasons = speakers._score(run, ["p"], ["abcd"], [[5]], rows[0])
    assert (scores, reasons) == ({"wants": [4.0]}, [])


def test_the_exam_and_its_explanation_hand_over_the_same_columns():
    rows = [{"prompt": "p", "facts": "f", **TAKEN, **PICTURES}]
    asked_about = evaluation.question_about(rows, ["c"])  # as chat and token credit ask, too
    assert asked_about.pop("prompts") == ["p"] and asked_about.pop("completions") == ["c"]
    assert asked_about == {"facts": ["f"], "image": ["a.png"], "images": [["a.png"]]}


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "video", "path": "a.mp4"}])
def test_messages_that_show_something_else_than_text_are_refused_with_their_row(tmp_path, part):
    text = [{"type": "text", "text": "what is it?"}]
    rows = [{"prompt": [{"role": "user", "content": content}]} for content in (text, [*text, part])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        UserError, match=f"row 2: prompt has a message with {part['type']} in it: models here read text"
    ):
        data.load(DataArguments(str(tmp_path / "rows.jsonl")), "prompts")


# ------------------------------------------------------------ settings of TRL that say what a reward or an exam does
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_weights_that_contradict_those_of_the_rewards_are_refused(tmp_path, tiny_model_folder, algorithm):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {word}\n"}) + "\n" for word in WORDS))
    run, config = (ppo_stage.run, ppo_stage.PPOStage) if algorithm == "ppo" else (trl_stage.run, trl_stage.GRPOStage)
    with pytest.raises(
        UserError, match=r"reward_weights: \[1.0\] is not valid: .* \[2.0\]: leave it out, and set weight"
    ):
        run(
            ModelArguments(str(tiny_model_folder), dtype="float32", lora_r=2),
            DataArguments(str(path), eval_fraction=0.5),
            RewardArguments(rewards=[{"name": "length", "max": 3, "weight": 2}], show_samples=0),
            config(**SETTINGS | {"output_dir": str(tmp_path / "out"), "total_episodes": 4, "reward_weights": [1.0]}),
        )


def test_the_exam_samples_as_the_training_does(tmp_path, tiny_tokenizer):
    """With top_k 1 only the likeliest token is ever sampled, whatever the temperature."""
    settings = SETTINGS | {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "report_to": "none",
        "top_k": 1,
        "temperature": 3.0,
    }
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = Dataset.from_list([{"prompt": f"say {word}"} for word in WORDS])
    trainer = trl_stage.CountedGRPO(
        build_model(), wants_nothing, trl_stage.GRPOStage(**settings), rows, None, tiny_tokenizer, peft_config=lora
    )
    sampled, greedy = Exam(trainer, None, rows.to_list(), {"it": wants_nothing}, {"it": 1.0}).take(None)
    assert sampled.completion_ids == greedy.completion_ids
    trainer.top_k = 0
    sampled, greedy = Exam(trainer, None, rows.to_list(), {"it": wants_nothing}, {"it": 1.0}).take(None)
    assert sampled.completion_ids != greedy.completion_ids


def wants_nothing(prompts, completions, **columns):
    return [0.0] * len(completions)
