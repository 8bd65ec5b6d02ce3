"""A loss or gradient that is not finite: the step is not made, and it is counted, kept, and after three the end."""

import json
import math

import pytest
import torch
import toy
from datasets import Dataset
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback
from trl import RewardConfig, SFTConfig

from pipeline.config import GRPOStage
from pipeline.errors import UserError
from pipeline.stages.reward_model import Reward
from pipeline.stages.sft import SFT
from pipeline.stages.trl_stage import CountedGRPO
from pipeline.watching.watch import read_warnings

# Its square is above 3.4e38, float32's largest number, so the value loss is infinite; its gradient is not.
SQUARE_OVERFLOWS = 3e19
PLAIN = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 0}


class Steps(TrainerCallback):
    """Weights and Adam's state after each optimizer step."""

    def __init__(self):
        self.weights, self.adam = [], []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.weights.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        states = optimizer.state_dict()["state"].values()
        self.adam.append([x.detach().clone() for one in states for x in one.values()])


class Scores:
    """Letters, but the first completion of the given rollouts (counted from 1) gets another score."""

    __name__ = "scores"

    def __init__(self, *rollouts):
        self.rollouts, self.calls = rollouts, 0

    def __call__(self, prompts, completions, **columns):
        self.calls += 1
        scores = toy.letters(prompts, completions)
        return [SQUARE_OVERFLOWS, *scores[1:]] if self.calls in self.rollouts else scores


def same(a, b) -> bool:
    pairs = zip(a, b, strict=True) if isinstance(a, list) else ((a[name], b[name]) for name in a)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_skipped_step_leaves_weights_and_optimizer_and_is_counted(tmp_path, max_grad_norm):
    steps = Steps()
    trainer = toy.make_trainer(
        tmp_path,
        toy.with_sft_adapter(),
        reward=Scores(2, 4),
        callbacks=[steps],
        total_episodes=40,
        max_grad_norm=max_grad_norm,
        lr_scheduler_type="linear",
    )
    trainer.train()  # five updates of two steps each; the second and the fourth rollout are bad
    skipped = [False, True, True, False, False, True, True, False, False]  # steps 2 to 10
    assert [same(steps.weights[i], steps.weights[i + 1]) for i in range(9)] == skipped
    assert [same(steps.adam[i], steps.adam[i + 1]) for i in range(9)] == skipped
    assert all(x.isfinite().all() for x in steps.weights[-1].values())
    assert toy.logged(trainer, "skipped_steps") == [0, 2, 0, 2, 0]
    assert trainer.state.global_step == 10
    # the schedule went on: 1e-2 falls by a tenth at each step, made or not; a log has the rate of its last step
    assert toy.logged(trainer, "learning_rate") == pytest.approx([9e-3, 7e-3, 5e-3, 3e-3, 1e-3])


def test_what_is_kept_of_a_skipped_step(tmp_path, capsys):
    trainer = toy.make_trainer(
        tmp_path,
        toy.with_sft_adapter(),
        reward=Scores(1),
        rollout_func=toy.canned(toy.ANSWERS),
        shuffle_dataset=False,
    )
    trainer.train()
    assert "Step 1 is skipped: its loss is not finite." in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "non_finite").iterdir()) == [
        f"step-{step}.{kind}" for step in (1, 2) for kind in ("json", "safetensors")
    ]
    told = json.loads((tmp_path / "non_finite/step-1.json").read_text())
    assert told["step"] == 1 and sorted(map(str, told["losses"]))[-1] == "inf"
    assert math.isfinite(told["gradient_norm"]) and told["parameters_with_a_gradient_that_is_not_finite"] == []
    assert {row["prompt"] for row in told["rows"]} == set(toy.PROMPTS)
    worst = max(told["rows"], key=lambda row: row["largest"]["returns"])
    assert (worst["prompt"], worst["completion"]) == ("c", "a<eos>")  # the first prompt and its answer
    assert worst["completion_ids"] == [toy.A, toy.EOS]
    assert worst["largest"]["returns"] == pytest.approx(SQUARE_OVERFLOWS, rel=0.1)
    tensors = load_file(tmp_path / "non_finite/step-1.safetensors")
    assert max(x.max() for n, x in tensors.items() if n.endswith("returns")) == worst["largest"]["returns"]
    assert [(row["step"], row["watcher"]) for row in read_warnings(tmp_path)] == [(1, "non-finite")]


def test_three_in_a_row_end_the_run_with_the_weights_of_before(tmp_path):
    settings = {"total_episodes": 24, "num_iterations": 4}
    steps, start = Steps(), toy.with_sft_adapter()
    trainer = toy.make_trainer(tmp_path, start, reward=Scores(2), callbacks=[steps], **settings)
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row \(5 to 7\).*checkpoint-7 .*before step 5"):
        trainer.train()
    saved = load_file(tmp_path / "checkpoint-7/adapter_model.safetensors")
    before = {n: x for n, x in steps.weights[3].items() if ".default." in n}  # after step 4
    assert len(saved) == len(before) > 0
    assert all(torch.equal(x, before[n.replace(".weight", ".default.weight")]) for n, x in saved.items())
    # and on it goes, with a rollout that is not the bad one
    again = toy.make_trainer(tmp_path, toy.with_sft_adapter(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert again.state.global_step == 12 and sum(toy.logged(again, "skipped_steps")) == 0


def test_own_loops_are_stopped_too(tmp_path):
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(), num_iterations=4, reward=None, prompts=None)
    completions = trainer.generate(toy.PROMPTS)
    with pytest.raises(UserError, match="3 steps in a row"):
        trainer.step(toy.PROMPTS, completions, [SQUARE_OVERFLOWS, *[0.0] * 7])


def poisoned(cls=LlamaForCausalLM, **changes):
    """A model whose embedding of the letter b is NaN, and so is whatever comes after it."""
    config = toy.build_model().config
    config.update(changes)
    model = cls(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[toy.B] = torch.nan
    return model


def test_sft_skips_the_batch_with_the_bad_row(tmp_path):
    steps = Steps()
    rows = [
        {"prompt": p, "completion": c} for p, c in zip("ccdeed", ("dc", "ae", "ed", "cb", "aa", "de"), strict=True)
    ]
    args = SFTConfig(str(tmp_path), per_device_train_batch_size=1, num_train_epochs=1, logging_steps=6, **PLAIN)
    trainer = SFT(
        poisoned(), args, None, Dataset.from_list(rows), processing_class=toy.tokenizer(), peft_config=toy.lora()
    )
    trainer.add_callback(steps)
    trainer.train()
    assert toy.logged(trainer, "skipped_steps") == [1]
    assert sum(same(a, b) for a, b in zip(steps.weights, steps.weights[1:], strict=False)) == 1
    assert all(x.isfinite().all() for x in steps.weights[-1].values())
    (file,) = (tmp_path / "non_finite").glob("*.json")
    told = json.loads(file.read_text())
    assert [(row["text"], row["not_finite"]) for row in told["rows"]] == [("ecb<eos>", ["logits"])]
    assert told["losses"] == ["nan"] and told["gradient_norm"] == "nan"
    assert all("lora_" in name for name in told["parameters_with_a_gradient_that_is_not_finite"])
    assert told["parameters_with_a_gradient_that_is_not_finite"]


def test_the_reward_model_skips_the_batch_with_the_bad_row(tmp_path):
    rows = Dataset.from_list([{"prompt": "c", "chosen": c, "rejected": "de"} for c in ("ae", "cb", "ac", "ee")])
    args = RewardConfig(str(tmp_path), per_device_train_batch_size=1, max_steps=4, logging_steps=4, **PLAIN)
    model = poisoned(LlamaForSequenceClassification, num_labels=1)
    lora = toy.lora(task_type="SEQ_CLS")
    trainer = Reward(model, args, train_dataset=rows, processing_class=toy.tokenizer(), peft_config=lora)
    trainer.train()
    assert toy.logged(trainer, "skipped_steps") == [1]
    (file,) = (tmp_path / "non_finite").glob("*.json")
    wrong = [row["text"] for row in json.loads(file.read_text())["rows"] if row["not_finite"]]
    assert [text[:3] for text in wrong] == ["ccb"]


def test_grpo_skips_the_batch_with_the_bad_row(tmp_path):
    answers = {prompt: [toy.A, toy.EOS] for prompt in toy.PROMPTS} | {"dd": [toy.B, toy.EOS]}
    args = GRPOStage(
        str(tmp_path), max_steps=8, per_device_train_batch_size=2, num_generations=2, max_completion_length=6, **PLAIN
    )
    trainer = CountedGRPO(
        poisoned(),
        toy.letters,
        args,
        Dataset.from_dict({"prompt": [p for p in toy.PROMPTS if "b" not in p] + ["d"]}),
        processing_class=toy.tokenizer(),
        peft_config=toy.lora(),
        rollout_func=toy.canned(answers | {"d": [toy.A, toy.EOS]}),
    )
    trainer.train()  # eight prompts, one a step
    assert sum(toy.logged(trainer, "skipped_steps")) == 1
    assert all(p.isfinite().all() for n, p in trainer.model.named_parameters() if "lora_" in n)
    (file,) = (tmp_path / "non_finite").glob("*.json")
    assert {row["prompt"] for row in json.loads(file.read_text())["rows"]} == {"dd"}
