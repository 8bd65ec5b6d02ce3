"""`adapter_averaging`: what a stage saves and examines is on the line from its start, what it goes on from is not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from lines import assert_on_the_line, products
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from short_runs import SETTINGS, noisy, prompts_file
from transformers import AutoModelForCausalLM

from pipeline.config import DataArguments, DPOStage, GRPOStage, ModelArguments, RLOOStage, SFTStage
from pipeline.errors import UserError
from pipeline.exam.exam import Exam, RewardArguments
from pipeline.models import averaging
from pipeline.models.adapters import POLICY
from pipeline.runs.folder import read_heldout
from pipeline.stages import dpo, sft, trl_stage
from pipeline.stages import ppo as ppo_stage

FILE = "adapter_model.safetensors"
PAIRS = [{"prompt": f"{a}{b} =>", "chosen": f" {a}{b}.", "rejected": f" {a}{b}!!"} for a in "abcd" for b in "uvwx"]
COMMON = SETTINGS | {"lr_scheduler_type": "constant", "save_steps": 1, "save_total_limit": None, "learning_rate": 3e-2}
OF_STAGE = {
    "ppo": (ppo_stage.run, ppo_stage.PPOStage, {"total_episodes": 12}),
    "reinforce": (ppo_stage.run, ppo_stage.PPOStage, {"total_episodes": 12, "algorithm": "reinforce"}),
    "grpo": (trl_stage.run, GRPOStage, {"total_episodes": 12}),
    "rloo": (trl_stage.run, RLOOStage, {"total_episodes": 12}),
    "dpo": (dpo.run, DPOStage, {"num_train_epochs": 1}),
}


@pytest.fixture(scope="module")
def sft_folder(tmp_path_factory, tiny_model_folder):
    """An adapter that does something, as the SFT stage leaves it."""
    folder = tmp_path_factory.mktemp("sft")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    toy.randomize(model, "default", seed=1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, tiny_model_folder, sft_folder):
    """Runs a stage from the SFT adapter; returns its summary."""

    def start(stage, output, adapter=sft_folder, **settings):
        act, config, own = OF_STAGE[stage]
        known = {field for field in config.__dataclass_fields__}
        own = {key: value for key, value in (COMMON | own).items() if key in known}
        if stage == "reinforce":
            own["num_iterations"] = 1
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
        data = str(prompts_file(tmp_path))
        return act(
            ModelArguments(
                str(tiny_model_folder), adapter_path=adapter and str(adapter), dtype="float32", lora_r=2, lora_alpha=2
            ),
            DataArguments(dataset=str(pairs), eval_dataset=data)
            if stage == "dpo"
            else DataArguments(dataset=data, eval_fraction=0.25),
            RewardArguments(rewards=[{"name": noisy}], eval_samples=3, show_samples=0),
            config(output_dir=str(tmp_path / output), **own | settings),
        )

    return start


def same(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one / FILE), load_file(other / FILE)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("stage", OF_STAGE)
def test_the_result_is_on_the_line_and_no_checkpoint_is(run, stage, tmp_path, sft_folder, monkeypatch):
    examined, take = [], Exam.take

    def spy(self, adapter, *args, **kwargs):
        weights = {n: p.detach().clone() for n, p in self.model.named_parameters() if f".{POLICY}." in n}
        examined.append((adapter, weights))
        return take(self, adapter, *args, **kwargs)

    monkeypatch.setattr(Exam, "take", spy)
    plain, whole = run(stage, "plain"), tmp_path / "plain"
    averaged, half = run(stage, "half", adapter_averaging=0.5), tmp_path / "half"
    assert_on_the_line(half, sft_folder, whole, 0.5)
    steps = sorted(path.name for path in whole.glob("checkpoint-*"))
    assert len(steps) > 1 and all(same(whole / step, half / step) for step in steps)
    assert same(whole, whole / max(steps, key=lambda name: int(name.split("-")[1])))
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (whole, half)]
    assert configs[0] == configs[1]
    if stage == "ppo":
        assert same(whole / "critic", half / "critic")
    # the last exam is one of what is saved
    adapter, weights = examined[-1]
    saved = load_file(half / FILE)
    assert adapter == POLICY and weights
    for name, weight in weights.items():
        assert torch.equal(weight, saved[name.replace(f".{POLICY}.", ".")]), name
    assert averaged["kl"] != plain["kl"] and read_heldout(half)[-1]["kl"] == averaged["kl"] != 0
    assert (averaged["before"], averaged["episodes"], averaged["tokens"]) == tuple(
        plain[key] for key in ("before", "episodes", "tokens")
    )


def test_a_finished_run_goes_on_as_if_it_had_not_been_averaged(run, tmp_path):
    half = {"adapter_averaging": 0.5}
    run("ppo", "long", total_episodes=24, **half)
    run("ppo", "short", total_episodes=12, **half)
    short = (tmp_path / "short" / FILE).read_bytes()
    run("ppo", "short", total_episodes=12, resume=True, **half)  # nothing is left to do
    assert (tmp_path / "short" / FILE).read_bytes() == short
    run("ppo", "short", total_episodes=24, resume=True, **half)
    assert same(tmp_path / "short", tmp_path / "long") and (tmp_path / "short" / FILE).read_bytes() != short


def test_another_point_of_a_line_needs_no_training(run, tmp_path, sft_folder):
    run("ppo", "whole")
    last = max((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    run("ppo", "third", adapter_averaging=0.3, resume_from_checkpoint=str(last))
    assert_on_the_line(tmp_path / "third", sft_folder, tmp_path / "whole", 0.3)


def test_a_policy_that_starts_as_the_base(run, tmp_path):
    run("ppo", "whole", adapter=None)
    run("ppo", "part", adapter=None, adapter_averaging=0.7)
    whole, part = products(tmp_path / "whole"), products(tmp_path / "part")
    for name, product in whole.items():
        np.testing.assert_allclose(part[name], 0.7 * product, atol=1e-8)


def test_sft_adds_that_part_of_what_it_learned(tmp_path, tiny_model_folder):
    """Merged by PEFT it is W + w · alpha / r · B A, and the loss that is told is that of what is saved."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{a} =>", "completion": f" {a}{a}"}) + "\n" for a in "abcdefgh"))

    def start(output, **settings):
        settings = {"learning_rate": 3e-2, "num_train_epochs": 2, "use_cpu": True, "bf16": False} | settings
        summary = sft.run(
            ModelArguments(str(tiny_model_folder), dtype="float32", lora_r=4, lora_alpha=12),
            DataArguments(dataset=str(rows), eval_fraction=0.25),
            SFTStage(output_dir=str(tmp_path / output), disable_tqdm=True, **settings),
        )
        return summary["heldout_loss"]["after"]

    start("whole")
    loss = start("part", adapter_averaging=0.6)
    weights = load_file(tmp_path / "whole" / FILE)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, tmp_path / "part").merge_and_unload()
    seen = 0
    for name, parameter in merged.named_parameters():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" not in weights:
            continue
        A, B = (weights[f"{prefix}.lora_{factor}.weight"].double().numpy() for factor in "AB")
        expected = before[name].double().numpy() + 0.6 * 12 / 4 * B @ A
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-6)
        seen += np.abs(B @ A).max() > 1e-3
    assert seen > 7
    # the same again from the saved folder, by a run that trains nothing
    settings = {"learning_rate": 0.0, "max_steps": 1, "use_cpu": True, "bf16": False, "disable_tqdm": True}
    again = sft.run(
        ModelArguments(str(tiny_model_folder), adapter_path=str(tmp_path / "part"), dtype="float32"),
        DataArguments(dataset=str(rows), eval_fraction=0.25),
        SFTStage(output_dir=str(tmp_path / "again"), **settings),
    )
    assert again["heldout_loss"]["before"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.5, float("nan")])
@pytest.mark.parametrize("config", [SFTStage, DPOStage, GRPOStage, ppo_stage.PPOStage])
def test_a_weight_that_is_none(config, weight):
    with pytest.raises(UserError, match=r"adapter_averaging: .* is not valid: above 0, at most 1"):
        config(output_dir="x", use_cpu=True, adapter_averaging=weight)


def test_what_has_no_such_line_is_refused(tmp_path, tiny_model_folder, monkeypatch):
    config = SFTStage(output_dir="x", use_cpu=True, adapter_averaging=0.5)
    with pytest.raises(UserError, match="use_peft is false: there is no adapter to average"):
        averaging.check("SFT", config, False, None)
    for setting, value in (("use_dora", True), ("bias", "all"), ("modules_to_save", ["lm_head"])):
        folder = tmp_path / setting
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **{setting: value})
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), lora).save_pretrained(folder)
        with pytest.raises(UserError, match=f"adapter_averaging is 0.5, but .* has {setting}"):
            averaging.check("SFT", config, True, str(folder))
    averaging.check("SFT", config, True, None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    averaging.check("PPO", config, True, None)  # whose processes have the whole adapter
    with pytest.raises(UserError, match="under FSDP no process of SFT has the whole adapter: use one process or DDP"):
        averaging.check("SFT", config, True, None)
