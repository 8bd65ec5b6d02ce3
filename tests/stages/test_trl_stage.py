"""GRPO and RLOO over TRL's own trainers: the training is TRL's to the bit, and the run folder is like PPO's."""

import json

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from short_runs import SETTINGS, noisy, prompts_file
from toy import randomize
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from pipeline.cli import parse
from pipeline.config import DataArguments, GRPOStage, ModelArguments, RLOOStage
from pipeline.errors import UserError
from pipeline.exam.exam import Exam, RewardArguments
from pipeline.runs.folder import HELDOUT, read_heldout
from pipeline.stages import trl_stage
from pipeline.stages.trl_stage import MissingEOS

CONFIGS = {"grpo": GRPOStage, "rloo": RLOOStage}


@pytest.fixture(scope="module")
def sft(tmp_path_factory, tiny_model_folder):
    """An adapter that does something, as the SFT stage leaves it."""
    folder = tmp_path_factory.mktemp("sft")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    randomize(model, "default", seed=1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, tiny_model_folder, sft):
    """Runs a stage from the SFT adapter; `rewards` and settings as given."""

    def start(algorithm, rewards, output="out", adapter=sft, eval_every=None, **settings):
        return trl_stage.run(
            ModelArguments(str(tiny_model_folder), adapter_path=adapter and str(adapter), dtype="float32", lora_r=2),
            DataArguments(dataset=str(prompts_file(tmp_path)), eval_fraction=0.25),
            RewardArguments(rewards=rewards, eval_every=eval_every, eval_samples=3, show_samples=0),
            CONFIGS[algorithm](**{"output_dir": str(tmp_path / output), "total_episodes": 12} | SETTINGS | settings),
        )

    return start


def trained_by_trl(algorithm, base, sft, prompts, folder, **settings) -> dict[str, torch.Tensor]:
    """The adapter that comes out of TRL's trainer, used as TRL's documents say."""
    config, trainer = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[algorithm]
    args = config(str(folder), max_steps=6, report_to="none", save_strategy="no", **SETTINGS | settings)
    args.reward_weights = [2.0]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft, is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    theirs = trainer(model, noisy, args=args, train_dataset=Dataset.from_list(prompts), processing_class=tokenizer)
    theirs.train()
    theirs.model.save_pretrained(folder, selected_adapters=["default"])
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("algorithm", "beta"), [("grpo", 0.0), ("grpo", 0.1), ("rloo", 0.1)])
def test_the_training_is_trls_own(run, algorithm, beta, tmp_path, tiny_model_folder, sft, monkeypatch):
    trained_on = []
    trainer_class = trl_stage.CountedGRPO if algorithm == "grpo" else trl_stage.CountedRLOO
    sampler = trainer_class._get_train_sampler

    def spy(self, *args):
        trained_on[:] = self.train_dataset.to_list()  # it is asked for a sampler more than once
        return sampler(self, *args)

    monkeypatch.setattr(trainer_class, "_get_train_sampler", spy)
    summary = run(algorithm, [{"name": noisy, "weight": 2.0}], beta=beta, eval_every=1)
    ours = load_file(tmp_path / "out/adapter_model.safetensors")
    theirs = trained_by_trl(algorithm, tiny_model_folder, sft, trained_on, tmp_path / "theirs", beta=beta)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    # the exams in between were taken all the same: an update is 2 epochs of one optimizer step, 4 completions
    rows = read_heldout(tmp_path / "out")
    assert [(row["step"], row["episodes"]) for row in rows] == [(0, 0), (2, 4), (4, 8), (6, 12)]
    assert summary["episodes"] == 12 and summary["kl"] != 0


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_the_run_folder_is_like_that_of_ppo(run, algorithm, tmp_path, tiny_model_folder):
    lengths = []

    def counted(prompts, completions, completion_ids, trainer_state=None, **columns):
        if trainer_state is not None:  # TRL gives it in training
            lengths.extend(map(len, completion_ids))
        return [float(len(ids)) for ids in completion_ids]

    summary = run(algorithm, [{"name": counted, "weight": 0.5}])
    folder = tmp_path / "out"
    assert summary == json.loads((folder / "summary.json").read_text())
    keys = "algorithm before after greedy kl heldout episodes tokens seconds seed"
    keys += " peak_memory_mib base started_from base_fingerprint dtype hardware"
    assert set(summary) == set(keys.split()) and summary["algorithm"] == algorithm and summary["seed"] == 3
    assert set(summary["after"]) == {"counted", "length", "finished"} == set(summary["greedy"]["before"])
    assert (summary["episodes"], summary["tokens"]) == (12, sum(lengths)) and len(lengths) == 12
    files = {path.name for path in folder.iterdir()}
    assert files >= {"config.yaml", "metrics.jsonl", "samples.jsonl", "heldout.jsonl", "report.html", "tokenizer.json"}
    # one ordinary adapter, without the frozen start
    assert [path.name for path in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert not [key for key in load_file(folder / "adapter_model.safetensors") if "ref" in key.split(".")]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3 + 1  # once an update, and the end
    # its own config.yaml can be given again
    settings = yaml.safe_load((folder / "config.yaml").read_text()) | {"rewards": [{"name": "bleu"}]}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(settings))
    *_, config = parse(
        ModelArguments, DataArguments, RewardArguments, CONFIGS[algorithm], argv=["--config", f"{tmp_path}/again.yaml"]
    )
    assert (config.max_steps, config.generation_batch_size) == (6, 4)


@pytest.mark.parametrize("adapter", ["sft", None])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_kl_is_that_of_the_saved_adapter_to_the_start(
    run, adapter, beta, tmp_path, tiny_model_folder, sft, monkeypatch
):
    seen, kl = [], Exam.kl

    def spy(self, judged, *shown):
        seen.append(([row["prompt"] for row in self.rows], judged.completion_ids))
        return kl(self, judged, *shown)

    monkeypatch.setattr(Exam, "kl", spy)
    summary = run("grpo", [{"name": noisy}], beta=beta, adapter=sft if adapter else None)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)

    def logprob(path, prompt, ids):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        model = PeftModel.from_pretrained(model, path) if path else model
        prompt_ids = tokenizer(prompt)["input_ids"]
        logits = model.eval()(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(dim=-1)
        return sum(logits[t, token].item() for t, token in enumerate(ids))

    prompts, completions = seen[-1]
    differences = [
        logprob(tmp_path / "out", p, ids) - logprob(sft if adapter else None, p, ids)
        for p, ids in zip(prompts, completions, strict=True)
    ]
    assert summary["kl"] == pytest.approx(sum(differences) / 3, abs=1e-4) and abs(summary["kl"]) > 1e-3


def test_a_resumed_run_counts_on_and_has_every_row_once(run, tmp_path):
    rewards = [{"name": "length", "max": 3, "unit": "tokens", "normalize": "running"}]
    checkpoints = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 3}
    run("grpo", rewards, eval_every=1, **checkpoints)
    first = read_heldout(tmp_path / "out")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / HELDOUT).write_text((tmp_path / "out" / HELDOUT).read_text())
    checkpoint = tmp_path / "out/checkpoint-4"
    summary = run("grpo", rewards, "again", eval_every=1, resume_from_checkpoint=str(checkpoint), **checkpoints)
    rows = read_heldout(tmp_path / "again")
    assert [row["step"] for row in rows] == [0, 2, 4, 6] and rows[:3] == first[:3]
    assert summary["episodes"] == 12 and summary["tokens"] > first[2]["tokens"]
    saved = json.loads((tmp_path / "again/checkpoint-6" / "stage_state.json").read_text())
    assert saved["rewards"]["length"]["stats"]["count"] == 12  # 8 of the checkpoint and 4 of its own


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_resumed_inside_a_rollout_to_the_same_bits(run, algorithm, tmp_path):
    """A rollout takes two steps here, and an epoch over the 9 prompts as many as it fits."""
    checkpoints = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "logging_steps": 4}
    rewards = [{"name": noisy}]
    run(algorithm, rewards, beta=0.1, **checkpoints)
    start = tmp_path / "out/checkpoint-3"
    run(algorithm, rewards, "again", beta=0.1, resume_from_checkpoint=str(start), **checkpoints)
    whole, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert not all(torch.equal(whole[key], x) for key, x in load_file(start / "adapter_model.safetensors").items())


def test_a_completion_that_was_cut_pays_the_penalty(run, tmp_path):
    penalty = MissingEOS()
    penalty.eos_token_ids = [2, 7]
    assert penalty(["p"] * 4, ["x"] * 4, [[5, 2], [5, 5], [7], []]) == [0.0, -1.0, 0.0, -1.0]
    run("grpo", [{"name": noisy, "weight": 2.0}], missing_eos_penalty=3.0)
    log = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[0])
    expected = 2 * log["rewards/noisy/mean"] + 3 * log["rewards/missing_eos/mean"]
    assert log["reward"] == pytest.approx(expected, abs=1e-5)
    assert log["rewards/missing_eos/mean"] == pytest.approx(-log["completions/clipped_ratio"])
    assert "missing_eos" not in json.loads((tmp_path / "out/summary.json").read_text())["after"]


def test_instant_is_ignored_with_a_word(run, capsys, tmp_path):
    for output, instant in (("plain", {}), ("instant", {"instant": True})):
        run("grpo", [{"name": "keyword", "column": "facts"} | instant, {"name": noisy}], output)
        said = capsys.readouterr().out
        assert ("GRPO takes one score a completion: `instant` of keyword has no effect here." in said) == bool(instant)
    plain, instant = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "instant"))
    assert all(torch.equal(plain[key], instant[key]) for key in plain)


@pytest.mark.parametrize("config", CONFIGS.values())
def test_total_episodes_makes_whole_updates(config):
    def steps(**settings):
        return config(**{"output_dir": "x", "use_cpu": True, "bf16": False, "num_generations": 2} | settings)

    # a rollout is 2 x 4 = 8 completions and 3 epochs of one optimizer step: 17 completions are 3 rollouts, 9 steps
    small = steps(per_device_train_batch_size=2, gradient_accumulation_steps=4, num_iterations=3, total_episodes=17)
    assert (small.max_steps, small.logging_steps) == (9, 3)
    # 8 micro-batches of 2 a rollout, 4 to a step: 2 steps an epoch, 2 epochs; 16 completions are one rollout
    long = steps(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        steps_per_generation=8,
        num_iterations=2,
        total_episodes=16,
    )
    assert (long.max_steps, long.logging_steps) == (4, 4)
    with pytest.raises(UserError, match="max_steps is 5, but total_episodes 16 makes it"):
        steps(total_episodes=16, max_steps=5)
    with pytest.raises(UserError, match="generation_batch_size is 64, but steps_per_generation 1 makes it 8"):
        steps(steps_per_generation=1, generation_batch_size=64)
    with pytest.raises(UserError, match="total_episodes: 0 is not valid"):
        steps(total_episodes=0)
