"""The stages under each launcher, on two CPU processes: the result is that of one process, or a refusal in a sentence.

Rows of two processes with 2 each are the rows of one process with 4. The optimizer is SGD without clipping (AdamW and
clipping divide the gradient by its own size, so that a wrong scale would go unseen).
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from rows import write_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.errors import UserError
from pipeline.memory import estimate as memory
from pipeline.memory import scale
from pipeline.memory.estimate import Adapter, Architecture, Precision
from pipeline.models import sharding
from pipeline.stages import sft

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
COMMON = PLAIN | {"use_cpu": True, "save_strategy": "no", "max_steps": 3, "eval_fraction": 0.3333}
STAGES = {
    "sft": {"dataset": "sft.jsonl", "max_length": 64},
    "reward": {"dataset": "pairs.jsonl", "max_length": 64, "lora_r": 4},
    "ppo": {
        "dataset": "prompts.jsonl",
        "eval_samples": 4,
        "max_completion_length": 8,
        "num_iterations": 2,
        "max_steps": 4,
        "rewards": [{"name": "myletters:vowels"}],
    },
}
NEEDS_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'"
)
# seen: 3e-8 (SFT), 8e-8 (reward model); what is compared has moved by 0.07
TOLERANCE, MOVED = 1e-6, 0.03
LORA = Adapter(16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder):
    """Data and one YAML a stage."""
    folder = tmp_path_factory.mktemp("launchers")
    words = [f"w{i}" for i in range(24)]
    write_rows(folder / "sft.jsonl", [{"prompt": f"say {w} =>\n", "completion": f"It is {w}."} for w in words])
    pairs = [{"prompt": f"say {w} =>\n", "chosen": f"It is {w}.", "rejected": "No."} for w in words]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "prompts.jsonl", [{"prompt": f"say {w} =>\n"} for w in words])
    (folder / "myletters.py").write_text(
        "def vowels(prompts, completions, **columns):\n    return [float(len(set(c.encode()))) for c in completions]\n"
    )
    for stage, settings in STAGES.items():
        settings = {"model_name_or_path": str(tiny_model_folder), "output_dir": "out"} | COMMON | settings
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def run(folder: Path, stage: str, hardware: str | None, *settings: str, script: str | None = None) -> Path:
    """The stage under recipes/accelerate/<hardware>.yaml on the CPU, or None: one process. Its output folder."""
    out = folder / (hardware or "one") / stage
    if out.exists():
        return out
    size = "4" if hardware is None else "2"
    own = ["--config", f"{stage}.yaml", "--output_dir", str(out), "--per_device_train_batch_size", size, *settings]
    command, environment = [sys.executable], clean()
    if hardware is None:
        command += [str(ROOT / f"recipes/{stage}.py"), *own]
    else:
        file = str(ROOT / f"recipes/accelerate/{hardware}.yaml")
        command += ["-m", "accelerate.commands.launch", "--config_file", file, "--mixed_precision", "no"]
        command += [str(ROOT / "tests/support/distributed/on_cpu.py"), stage, *own]
        environment |= {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out


def clean() -> dict[str, str]:
    distributed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = {key: value for key, value in os.environ.items() if key not in distributed}
    return found | {"PYTHONPATH": f"{ROOT}{os.pathsep}.", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def same(found: Path, expected: Path, tolerance: float = TOLERANCE) -> None:
    """Both folders hold the same adapter in safetensors, which has moved, and no pickle."""
    one, other = (load_file(path / "adapter_model.safetensors") for path in (expected, found))
    assert set(one) == set(other)
    assert max(weight.abs().max() for name, weight in one.items() if "lora_B" in name) > MOVED
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=tolerance, rtol=0, msg=name)
    assert not [path for pattern in ("*.bin", "*.pt", "*.pth") for path in found.rglob(pattern)]


def told(out: Path, rank: int = 0) -> dict:
    """What tests/support/distributed/on_cpu.py saw."""
    return json.loads(out.parent.joinpath(f"{out.name}.rank{rank}.json").read_text())


# ---------------------------------------------------------------- equal to one process
@pytest.fixture(scope="module")
def one_sft(folder):
    """SFT in this process."""
    settings = yaml.safe_load((folder / "sft.yaml").read_text())
    model = ModelArguments(model_name_or_path=settings.pop("model_name_or_path"))
    data = DataArguments(dataset=str(folder / settings.pop("dataset")), eval_fraction=settings.pop("eval_fraction"))
    out = folder / "one" / "sft"
    sft.run(model, data, SFTStage(**settings | {"output_dir": str(out), "per_device_train_batch_size": 4}))
    return out


@pytest.mark.slow  # 20 s, most of them the start of two processes
def test_sft_under_fsdp_is_that_of_one_process(folder, one_sft, tiny_model_folder):
    out = run(folder, "sft", "fsdp", "--per_device_eval_batch_size", "4")
    same(out, one_sft)
    seen = told(out)
    assert seen["kind"] == "FSDP" and seen["sharded"] > 0
    losses, expected = (json.loads((x / "summary.json").read_text())["heldout_loss"] for x in (out, one_sft))
    # before (at the start of training) and after; they are means of batches, of other rows than in one process
    assert losses == pytest.approx(expected, abs=2e-3)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), out)
    assert model.active_adapter == "default"
    # what each step sent, against the formula of docs/scale.md: sums of the whole sizes, of which (n - 1)/n is sent
    base = Architecture.of(model.get_base_model().config)
    expected = 2 * scale.sharded(base, Precision(), LORA, processes=2) * seen["steps"]
    assert seen["all_gather_single"] + seen["reduce_scatter_single"] == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_sft_under_ddp_is_that_of_one_process(folder, one_sft):
    """With held-out rows: Accelerate takes a model that was evaluated for wrapped, and DDP would never come about."""
    out = run(folder, "sft", "cpu2", "--per_device_eval_batch_size", "4")
    same(out, one_sft)
    seen = told(out)
    trained = memory.Adapter(16).parameters(Architecture.of(AutoModelForCausalLM.from_pretrained(base_of(out)).config))
    assert seen["all_reduce"] == 4 * trained * seen["steps"]  # whole size; each process sends 2 (n - 1)/n of it
    assert seen["all_reduce"] == scale.ddp(trained, processes=2) * seen["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("hardware", ["cpu2", "fsdp"])
def test_the_reward_model_is_that_of_one_process(folder, hardware):
    same(run(folder, "reward", hardware), run(folder, "reward", None))


@pytest.mark.slow
@NEEDS_DEEPSPEED
@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("hardware", ["zero2", "zero3"])
def test_deepspeed_gives_what_one_process_gives(folder, stage, hardware):
    same(run(folder, stage, hardware), run(folder, stage, None))
    assert told(folder / hardware / stage)["kind"] == "DEEPSPEED"


@pytest.mark.slow
@NEEDS_DEEPSPEED
def test_ppo_under_zero2_is_that_under_ddp(folder):
    """Two processes sample other completions than one does; DDP is held to one process by test_equivalences.py."""
    out, expected = run(folder, "ppo", "zero2"), run(folder, "ppo", "cpu2")
    same(out, expected)
    same(out / "critic", expected / "critic")
    # four optimizer steps, two adapters of 16,384 numbers and a value head of 32 + 1
    assert told(expected)["all_reduce"] == 4 * scale.ddp(2 * 16_384 + 33, processes=2)


def base_of(out: Path) -> str:
    return json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]


# ---------------------------------------------------------------- two machines
@pytest.mark.slow
def test_two_machines_are_one_process(folder, one_sft):
    """machines.yaml as it says, a command on each machine; here both are this one."""
    out = folder / "machines" / "sft"
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "recipes/accelerate/machines.yaml"), "--mixed_precision", "no"]
    command += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    own = [str(ROOT / "tests/support/distributed/on_cpu.py"), "sft", "--config", "sft.yaml", "--output_dir", str(out)]
    own += ["--per_device_train_batch_size", "2"]
    environment = clean() | {"ACCELERATE_USE_CPU": "true"}
    machines = [
        subprocess.Popen([*command, "--machine_rank", str(rank), *own], cwd=folder, env=environment)
        for rank in range(2)
    ]
    assert [machine.wait(timeout=500) for machine in machines] == [0, 0]
    same(out, one_sft)
    assert [told(out, rank)["kind"] for rank in range(2)] == ["MULTI_CPU"] * 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# ---------------------------------------------------------------- what is refused
def test_sharding_on_a_cpu_is_refused_instead_of_left_out(tmp_path, monkeypatch):
    config = SFTStage(output_dir=str(tmp_path), use_cpu=True)
    sharding.check_launcher("SFT", config)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP was asked for, but on a CPU Accelerate runs DDP instead"):
        sharding.check_launcher("SFT", config)
