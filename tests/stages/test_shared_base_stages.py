"""The stages that sample, on two CPU processes that share the base: what they leave, how they go on, what they refuse.

The second process reads no weights, so whatever it says right it got from the first.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import build_model, build_tokenizer
from lines import assert_on_the_line
from rows import write_rows
from safetensors.torch import load_file
from saved import make_adapter, reward_folder
from transformers import AutoTokenizer

from pipeline.config import GRPOStage
from pipeline.errors import UserError
from pipeline.ilql.config import ILQLStage
from pipeline.models import sharding
from pipeline.ppo.config import PPOStage
from pipeline.runs.folder import read_heldout

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests/support/distributed/stages.py"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
PLAIN = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "bf16": False}
SAMPLES = {"dataset": "prompts.jsonl", "eval_fraction": 0.3333, "eval_samples": 4, "max_completion_length": 8}
SHORT = {"name": "length", "min": 20, "unit": "characters"}
STAGES = {
    "ppo": {
        **SAMPLES | {"total_episodes": 8, "num_iterations": 2, "critic_path": "reward", "eval_every": 1},
        **{"save_strategy": "steps", "save_steps": 1},
        "rewards": [{"name": "learned", "path": "reward", "normalize": "running"}, SHORT],
    },
    "grpo": SAMPLES | {"max_steps": 2, "num_generations": 2, "beta": 0.1, "rewards": [SHORT]},
    "rloo": SAMPLES | {"max_steps": 2, "num_generations": 2, "rewards": [SHORT]},
    "ilql": {
        **{"dataset": "said.jsonl", "eval_fraction": 0.3333, "eval_samples": 4, "max_completion_length": 8},
        **{"max_steps": 3, "train_sampling_strategy": "random", "polyak": 0.5},
        "rewards": [SHORT],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder):
    """Base, SFT adapter, reward model, data, and one YAML a stage."""
    folder = tmp_path_factory.mktemp("shared_stages")
    make_adapter(tiny_model_folder, folder / "sft")
    reward_folder(tiny_model_folder, folder / "reward")
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(folder / "reward")
    words = [f"w{i}" for i in range(12)]
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say {w} =>\n"} for w in words])
    said = [{"prompt": f"say {w} =>\n", "completion": "so " * (i % 5 + 1)} for i, w in enumerate(words * 2, start=1)]
    write_rows(folder / "said.jsonl", said)
    common = {"model_name_or_path": str(tiny_model_folder), "adapter_path": "sft", "use_cpu": True, "dtype": "float32"}
    for stage, settings in STAGES.items():
        settings = common | PLAIN | {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True} | settings
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def start(warm, folder: Path, stage: str, out: str, processes: int = 2, *settings: str, env=None, config=None) -> list:
    """How each process of a stage ended."""
    argv = [SCRIPT, stage, "--config", f"{config or stage}.yaml", "--output_dir", out]
    argv += ["--per_device_train_batch_size", str(4 // processes), *settings]
    return warm.ranks(processes, argv, folder, (FSDP if processes > 1 else {}) | (env or {}))


def run(warm, folder: Path, stage: str, out: str, processes: int = 2, *settings: str) -> Path:
    for done in start(warm, folder, stage, out, processes, *settings):
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    digests = {path.suffix: path.read_text() for path in folder.glob(f"{Path(out).name}.rank*of{processes}")}
    assert len(digests) == processes and len(set(digests.values())) == 1
    return folder / out


def before(out: Path) -> dict:
    """What the exam before training says, without its clocks."""
    first = read_heldout(out)[0]
    return {key: value for key, value in first.items() if "seconds" not in key}


# ---------------------------------------------------------------- what they leave
@pytest.fixture(scope="module")
def ppo(warm, folder):
    return run(warm, folder, "ppo", "ppo2")


def test_ppo_is_examined_and_saved(warm, folder, ppo):
    """Before training it is the policy of one process, so the exam says the same to the last digit."""
    one = run(warm, folder, "ppo", "ppo1", 1)
    assert before(ppo) == before(one)
    assert [row["update"] for row in read_heldout(ppo)] == [0, 1, 2]
    for name in ("adapter_model.safetensors", "critic/adapter_model.safetensors"):
        shared, alone = load_file(ppo / name), load_file(one / name)
        assert {k: x.shape for k, x in shared.items()} == {k: x.shape for k, x in alone.items()}
    assert (ppo / "tokens.jsonl").read_text() and (ppo / "report.html").is_file()
    assert not [p for pattern in ("*.bin", "*.pt") for p in ppo.glob(pattern)]


@pytest.mark.slow
def test_it_stops_on_the_line_from_its_start(warm, folder, ppo):
    """`adapter_averaging`: the same training, of which half the way is saved."""
    half = run(warm, folder, "ppo", "half", 2, "--adapter_averaging", "0.5")
    assert_on_the_line(half, folder / "sft", ppo, 0.5)


@pytest.mark.slow  # 10 s each
@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_grpo_and_rloo_run_are_examined_and_saved(warm, folder, stage):
    shared, one = run(warm, folder, stage, f"{stage}2"), run(warm, folder, stage, f"{stage}1", 1)
    assert before(shared) == before(one)
    assert {k: x.shape for k, x in load_file(shared / "adapter_model.safetensors").items()} == {
        k: x.shape for k, x in load_file(one / "adapter_model.safetensors").items()
    }
    assert json.loads((shared / "summary.json").read_text())["episodes"] == 8


@pytest.mark.slow
def test_ilql_is_that_of_one_process(warm, folder):
    shared, one = run(warm, folder, "ilql", "ilql2"), run(warm, folder, "ilql", "ilql1", 1)
    assert before(shared) == before(one)
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        found, expected = load_file(shared / "values" / name), load_file(one / "values" / name)
        for key, weight in expected.items():
            torch.testing.assert_close(found[key], weight, atol=1e-6, rtol=0, msg=f"{name} {key}")
    moved = load_file(one / "values/heads.safetensors")["q1.outer.weight"]  # starts at 0
    assert moved.abs().max() > 1e-3


@pytest.mark.slow
def test_a_base_in_4_bits_stays_whole(warm, folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    build_model(hidden_size=128, intermediate_size=384).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    settings = yaml.safe_load((folder / "grpo.yaml").read_text())
    settings |= {"model_name_or_path": str(tmp_path / "base"), "adapter_path": None, "load_in_4bit": True}
    (folder / "grpo.yaml").with_stem("four_bits").write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = start(warm, folder, "grpo", str(tmp_path / "out"), config="four_bits")
    assert all(each.returncode == 0 for each in done), done[0].stderr[-3000:]
    assert "a quantised base stays whole on each process" in done[0].stdout


# ---------------------------------------------------------------- going on
def test_a_killed_run_goes_on_to_the_same_bits(warm, folder, ppo):
    killed = start(warm, folder, "ppo", "killed", env={"KILL_AFTER": "4"})
    assert any(done.returncode == -9 for done in killed)
    assert (folder / "killed/checkpoint-3").is_dir() and not (folder / "killed/checkpoint-4").exists()
    alone = start(warm, folder, "ppo", "killed", 1, "--resume")
    assert alone[0].returncode == 2
    assert "settings that it began with: processes was 2 and is 1 now; per_device_train" in alone[0].stderr
    again = run(warm, folder, "ppo", "killed", 2, "--resume")
    for name in ("adapter_model.safetensors", "critic/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (ppo / name).read_bytes()


# ---------------------------------------------------------------- what is refused
def fsdp(monkeypatch, **settings) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("who", sharding.ON_A_SHARED_BASE)
def test_zero_3_is_refused_with_what_to_take(tmp_path, who):
    config = PPOStage(output_dir=str(tmp_path), use_cpu=True)
    sharding.check_launcher(who, config)
    config.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    with pytest.raises(UserError, match=f"{who} does not run under ZeRO-3: .* Use FSDP 2"):
        sharding.check_launcher(who, config)
    config.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    with pytest.raises(UserError, match="on a CPU Accelerate runs DDP instead"):
        sharding.check_launcher(who, config)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("FSDP_VERSION", "1", "set fsdp_version: 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "set fsdp_offload_params: false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "gradient_checkpointing: true"),
    ],
)
def test_settings_of_fsdp_that_a_shared_base_cannot_follow(tmp_path, monkeypatch, name, value, instead):
    config = ILQLStage(output_dir=str(tmp_path), use_cpu=True)
    fsdp(monkeypatch, FSDP_VERSION="2")
    sharding.check_launcher("ILQL", config)
    fsdp(monkeypatch, **{name: value})
    with pytest.raises(UserError, match=f"ILQL shares its base out .*{instead}"):
        sharding.check_launcher("ILQL", config)


def test_continuous_batching_is_refused(tmp_path, monkeypatch):
    config = GRPOStage(output_dir=str(tmp_path), use_cpu=True, bf16=False, use_transformers_continuous_batching=True)
    sharding.check_launcher("GRPO", config)
    fsdp(monkeypatch)
    with pytest.raises(UserError, match="use_transformers_continuous_batching does not run under FSDP"):
        sharding.check_launcher("GRPO", config)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
