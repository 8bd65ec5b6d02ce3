"""DPO over TRL's own trainer: the paper's loss with the SFT policy as the reference, and a run folder like PPO's."""

import inspect
import json
import math
import re

import pytest
import torch
import toy
from conftest import build_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from short_runs import prompts_file
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from pipeline.config import DataArguments, DPOStage, ModelArguments
from pipeline.config.stages import DIVERGENCES, DPO_LOSSES, SMOOTHED
from pipeline.errors import UserError
from pipeline.exam.exam import RewardArguments
from pipeline.runs.folder import read_heldout, read_metrics
from pipeline.stages import dpo

PAIRS = [{"prompt": f"{a}{b} =>", "chosen": f" {a}{b}.", "rejected": f" {a}{b}!!"} for a in "abcd" for b in "uvwx"]
BETA = 0.3
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "disable_tqdm": True,
    "beta": BETA,
    "seed": 3,
}


@pytest.fixture(scope="module")
def sft(tmp_path_factory, tiny_model_folder):
    """An adapter that does something, as the SFT stage leaves it: the base says something else."""
    folder = tmp_path_factory.mktemp("sft")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    toy.randomize(model, "default", seed=1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, tiny_model_folder, sft, monkeypatch):
    """Runs the stage from the SFT adapter; returns (summary, folder, the trainer)."""
    made = []
    start = dpo.DPO.__init__
    monkeypatch.setattr(dpo.DPO, "__init__", lambda self, *a, **k: made.append(self) or start(self, *a, **k))

    def act(pairs=PAIRS, output="out", adapter=sft, data=None, model=None, **settings):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
        data = {"eval_dataset": str(prompts_file(tmp_path))} if data is None else data
        named = {"dtype": "float32", "lora_r": 2} | (model or {})
        summary = dpo.run(
            ModelArguments(str(tiny_model_folder), adapter_path=adapter and str(adapter), **named),
            DataArguments(dataset=str(path), **data),
            RewardArguments(rewards=[{"name": "length", "max": 20}], eval_every=2, eval_samples=3, show_samples=0),
            DPOStage(output_dir=str(tmp_path / output), **SETTINGS | settings),
        )
        return summary, tmp_path / output, made[-1]

    return act


@pytest.mark.parametrize("fresh", [False, True])
def test_it_starts_at_log_2_with_implicit_rewards_of_0(run, fresh):
    """Where policy and reference are one σ(0) = 1/2 for each pair; with the bare base as reference it would not be."""
    _, folder, _ = run(adapter=None) if fresh else run()
    first, second = read_metrics(folder)[:2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert first[name] == pytest.approx(0, abs=1e-6), name
    assert abs(second["rewards/chosen"]) > 1e-4  # and then it moves


def logprob(model, tokenizer, pair: dict, side: str) -> float:
    """log π(completion, end of text | prompt), one text at a time."""
    prompt, whole = (tokenizer(text)["input_ids"] for text in (pair["prompt"], pair["prompt"] + pair[side]))
    assert whole[: len(prompt)] == prompt
    ids = [*whole[len(prompt) :], tokenizer.eos_token_id]
    return toy.hand_logprobs(model, prompt, ids, 1.0).sum().item()


def test_the_loss_is_the_papers(run, tiny_model_folder, sft):
    """Eq. 7 on one batch: base and saved adapters loaded anew, texts of unlike length one by one."""
    _, folder, trainer = run(num_train_epochs=2)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    tokenizer = build_tokenizer()
    said = [trainer.train_dataset[i] for i in range(4)]
    pairs = [
        {key: row[key].removesuffix(tokenizer.eos_token) for key in ("prompt", "chosen", "rejected")} for row in said
    ]
    policy, reference = (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), path).eval()
        for path in (folder, sft)
    )
    losses, margins = [], []
    for pair in pairs:
        rewards = [
            BETA * (logprob(policy, tokenizer, pair, side) - logprob(reference, tokenizer, pair, side))
            for side in ("chosen", "rejected")
        ]
        margins.append(rewards[0] - rewards[1])
        losses.append(math.log1p(math.exp(-margins[-1])))  # -log σ(x) = log(1 + exp(-x))
    assert max(map(abs, margins)) > 0.01  # else log 2 would do
    trainer.model.eval()
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    assert found.item() == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert trainer._metrics["eval"]["rewards/margins"][-1] == pytest.approx(sum(margins) / 4, abs=1e-4)


def test_it_learns_what_is_preferred(run):
    _, folder, _ = run(num_train_epochs=20)
    rows = [row for row in read_metrics(folder) if "rewards/margins" in row]
    assert rows[-1]["rewards/margins"] > 0.5 and rows[-1]["rewards/accuracies"] == 1 and rows[-1]["loss"] < 0.5


def test_the_run_folder_is_like_that_of_ppo(run, tiny_model_folder, sft):
    summary, folder, trainer = run()
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["algorithm"] == "dpo" and summary["pairs"] == 16 and summary["steps"] == 4
    assert summary["started_from"] == str(sft) and set(summary["greedy"]) == {"before", "after"}
    exams = read_heldout(folder)
    assert [(row["step"], row["update"]) for row in exams] == [(0, 0), (2, 2), (4, 4)]
    assert exams[0]["kl"] == 0 and exams[-1]["kl"] == summary["kl"] != 0
    assert exams[-1]["episodes"] == summary["episodes"] == 32  # two of each pair
    ids = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset]
    assert summary["tokens"] == sum(ids)
    for name in ("report.html", "README.md", "samples.jsonl", "config.yaml"):
        assert (folder / name).is_file(), name
    assert "rafailov2023direct" in (folder / "README.md").read_text()
    # one plain adapter, and nothing of its frozen start
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved and not any("ref" in key.split(".") for key in saved) and not list(folder.glob("**/ref"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), folder)
    before, after = (lora_b(it) for it in (start(tiny_model_folder, sft), model))
    assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def start(base, sft):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft)


def lora_b(model) -> list[torch.Tensor]:
    return [parameter for name, parameter in model.named_parameters() if "lora_B" in name]


def test_the_reference_stays_what_it_was(run, tiny_model_folder, sft):
    _, _, trainer = run()
    kept = {name: p for name, p in trainer.model.named_parameters() if ".ref." in name}
    first = dict(start(tiny_model_folder, sft).named_parameters())
    assert kept and not any(p.requires_grad for p in kept.values())
    assert all(torch.equal(p, first[name.replace(".ref.", ".default.")]) for name, p in kept.items())


def test_a_resumed_run_ends_at_the_same_bits(run):
    checkpoints = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    first, whole, _ = run(**checkpoints)
    middle = whole / "checkpoint-2"
    second, again, _ = run(output="again", resume_from_checkpoint=str(middle), **checkpoints)
    ours, theirs, halfway = (load_file(folder / "adapter_model.safetensors") for folder in (again, whole, middle))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(torch.equal(ours[name], halfway[name]) for name in ours if "lora_B" in name)
    assert [(it["episodes"], it["tokens"], it["kl"]) for it in (first, second)] == [
        (32, first["tokens"], first["kl"])
    ] * 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {}}, "eval_dataset is not set: DPO compares before and after on prompts held out"),
        ({"model": {"use_peft": False}, "adapter": None}, "use_peft: False is not valid: DPO trains LoRA adapters"),
        ({"pairs": [{"prompt": "a", "completion": "b"}]}, "chosen"),
        ({"sync_ref_model": True}, "trl does not take these settings: .*sync_ref_model"),
        ({"max_length": 2}, "no pair is left: every prompt alone fills max_length 2"),
    ],
)
def test_what_is_refused(run, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        run(**changes)


WRONG = [
    *({"beta": 0.0, "temperature": 0.0, "max_completion_length": 0, "max_length": 1}.items()),
    ("f_divergence_type", "kl"),
    ("label_smoothing", 0.5),  # of a flipped coin nothing is learned
    ("label_smoothing", 0.1),  # the loss sigmoid does not read it
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_values_are_checked(tmp_path, key, value):
    with pytest.raises(UserError, match=f"{key}: {value!r} is not valid"):
        DPOStage(output_dir=str(tmp_path), **SETTINGS | {key: value})


def test_losses_are_trls(run, tmp_path):
    """TRL looks at their names in the first step: after the exam."""
    for names in ("nonsense", ["sigmoid", "nonsense"]):
        with pytest.raises(UserError, match="loss_type: 'nonsense' is not valid: one or several of sigmoid, hinge"):
            DPOStage(output_dir=str(tmp_path), **SETTINGS | {"loss_type": names})
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(DPO_LOSSES) == set(re.findall(r'loss_type == "(\w+)"', source))
    assert set(DIVERGENCES) == set(re.findall(r'f_divergence_type == "(\w+)"', source))
    parts = re.split(r'if loss_type == "(\w+)"', source)[1:]
    reading = {name for name, body in zip(parts[::2], parts[1::2], strict=True) if "self.label_smoothing" in body}
    assert reading == SMOOTHED


def test_pairs_without_a_prompt_column_want_prompts_to_answer(run):
    rows = [{"chosen": f"ab {i} good", "rejected": f"ab {i} bad"} for i in range(12)]
    with pytest.raises(UserError, match="eval_fraction: .* no column prompt"):
        run(pairs=rows, data={"eval_fraction": 0.25})
    summary, _, _ = run(pairs=rows)
    assert summary["pairs"] == 12
