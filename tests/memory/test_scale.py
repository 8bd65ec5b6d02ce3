"""What a run takes on several processes: the formulas by pencil and against torch's own counter, the page against the
command that it names."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import toy
from accelerate.commands.launch import launch_command_parser
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import UserError
from pipeline.memory import estimate, scale, scale_tables
from pipeline.memory.estimate import Adapter, Architecture, Batch, Estimate, Precision
from pipeline.memory.scale import Plan

ROOT = Path(__file__).resolve().parents[2]
# hidden 16 = 2 heads of 8, one kv head, 24 inside: a layer has 256 + 128 + 128 + 256 + 3 x 384 = 1920 in linear layers
TOY = Architecture.of(toy.build_model(attn_implementation="eager").config)
RANK2 = Adapter(2)


def test_passes_by_pencil():
    assert TOY.in_linears == 3840
    # 10 tokens in sequences of 5: 2 a weight; attention 4 x 2 layers x 16 x 5; 3 words: 2 x 9 x 16
    assert scale.forward(TOY, 10, 5, 3) == 10 * (7680 + 640) + 3 * 288
    # inputs + outputs of a layer: 32 + 24 + 24 + 32 + 3 x 40 = 232
    assert RANK2.parameters(TOY) == 2 * 2 * 232
    assert scale.learning(TOY, RANK2, 10, 5, 3, checkpointing=False) == 10 * (2 * 7680 + 3 * 640 + 3 * 1856) + 3 * 576


def test_passes_against_torchs_counter():
    """Of products that a real pass makes. LoRA's in the forward pass are what is counted beside the base's."""
    model = toy.with_sft_adapter(toy.build_model(attn_implementation="eager"))
    ids = torch.zeros(2, 5, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), model.disable_adapter():
        model(input_ids=ids)
    assert counter.get_total_flops() == scale.forward(TOY, 10, 5, 10)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    # the very first layer's q, k and v need no gradient for their input, which is no weight's output
    expected = scale.learning(TOY, RANK2, 10, 5, 10, checkpointing=False) - 10 * 2 * (256 + 128 + 128)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_what_is_divided_by_pencil():
    found = Estimate({"base": 800, "adapters": 80, "gradients and optimizer": 240}, {"training": 50, "generation": 30})
    model = Architecture(8, 2, 2, 1, 4, 16, 10, (("layers.0.q", 10, 10), ("layers.1.q", 10, 10)), 400)
    plan = Plan(processes=8)
    for launcher, size in {"DDP": 1170, "ZeRO-2": 800 + 80 + 30 + 50, "FSDP": 100 + 10 + 30 + 50 + 200}.items():
        assert scale.under(launcher, found, model, Precision(weights=2), plan) == size, launcher
    assert scale.under("FSDP", found, model, Precision(weights=2, bits=4), plan) is None


def test_traffic_by_pencil():
    assert scale.ring(4, 100) == 150  # three quarters scattered, three quarters gathered
    assert scale.ddp(trained=1000, processes=2) == 4000
    # 928 of LoRA in float32; the layers' 3840 x 2 bytes and the adapter twice, 4144 - 3840 - ... once, gradients once
    rest = TOY.parameters - 3840
    assert scale.sharded(TOY, Precision(weights=2), RANK2, 2) == 0.5 * (2 * (7680 + 3712) + 2 * rest + 3712)
    assert scale.sharded(TOY, Precision(weights=2), RANK2, 2, 3) == 3 * scale.sharded(TOY, Precision(2), RANK2, 2)
    assert scale.vllm(TOY, RANK2) == 3712  # 928 numbers of LoRA


def test_a_shared_base_by_pencil():
    """48 bytes of 100 lie in 4 layers and are shared by 4, two of them whole; all else is as under DDP."""
    found = Estimate({"base": 100, "adapters": 80, "gradients and optimizer": 240}, {"training": 50})
    model = Architecture(8, 4, 2, 1, 4, 16, 10, tuple((f"layers.{i}.q", 2, 3) for i in range(4)), 50)
    two_bytes = Precision(weights=2)
    assert model.in_linears == 24
    assert scale.shared(found, model, two_bytes, 4) == (100 - 48 + 48 // 4 + 2 * 12) + 80 + 240 + 50
    assert estimate.shared_base(model, Precision(weights=2, bits=4), 4) == estimate.base(model, Precision(2, bits=4))


def test_what_a_shared_base_gathers_by_pencil():
    # 10 micro-batches: 6 tokens sampled, 4 that look, 2 epochs of two that learn, forward and backward
    plan = Plan(processes=4, completion=6, rows=1, episodes=10, epochs=2)
    assert scale.passes(plan) == 6 + 40 + 2 * 10 * 2 * 2 and scale.passes(plan, vllm=True) == 120
    assert scale.gathered(TOY, Precision(weights=2), plan) == 126 * 0.75 * 7680
    assert scale.gathered(TOY, Precision(weights=2, bits=4), plan) == 0


def test_an_update_is_what_is_computed_and_what_is_sent():
    plan = Plan(processes=2, rank=2, network=1.0)
    learned = 2 * RANK2.parameters(TOY) + 16 + 1
    found = scale.update(TOY, Precision(weights=2), plan, "DDP")
    assert found.pop("sent") == 4 * 4 * learned and found == scale.seconds(TOY, Precision(weights=2), plan)
    shared = scale.update(TOY, Precision(weights=2), plan, "FSDP")
    assert shared["sent"] == 16 * learned + scale.gathered(TOY, Precision(2), plan)
    served = scale.update(TOY, Precision(weights=2), plan, "FSDP, vLLM")
    assert "sampling" not in served
    assert served["sent"] == 16 * learned + scale.gathered(TOY, Precision(2), plan, True) + 3712


def test_sampling_reads_the_weights_for_each_token():
    plan = Plan(rows=1, prompt=4, completion=6, episodes=3, epochs=1, flops=1e30, bandwidth=1.0)
    found = scale.seconds(TOY, Precision(weights=4), plan)
    cache = 2 * 2 * 1 * 8 * 4 * 30  # keys and values, layers, kv heads, numbers, bytes, tokens
    assert found["sampling"] == pytest.approx(6 * (4 * TOY.parameters + cache))
    plan = Plan(rows=1, prompt=4, completion=6, episodes=3, epochs=2, flops=1.0, bandwidth=1e30)
    found = scale.seconds(TOY, Precision(weights=4), plan)
    assert found["reference"] == scale.forward(TOY, 30, 10, 18) and found["critic looks"] == scale.forward(TOY, 30, 10)
    assert found["policy learns"] == 2 * scale.learning(TOY, Adapter(16), 30, 10, 18)
    assert Plan(rows=2).batch == Batch(2, 512, 64)


def test_the_page_shows_what_the_command_prints(capsys):
    scale_tables.main([])
    printed = capsys.readouterr().out.strip()
    page = (ROOT / "docs/scale.md").read_text("utf-8")
    missing = [line for line in printed.splitlines() if line not in page]
    assert not missing, "docs/scale.md: run `python -m pipeline.scale` and put in what it prints"
    assert printed.count("| 70B nf4 |") == 4 and printed.count(" | 70B | ") == 3


def test_a_folder_is_a_model_too(capsys, tiny_model_folder):
    scale_tables.main([str(tiny_model_folder), "--processes", "2"])
    assert f"| {tiny_model_folder} bf16 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere/at-all"], "none of 0.5B, 7B, 32B, 70B"),
        (["0.5B", "--rows", "0"], "--rows is 0"),
        (["--x"], "--x"),
    ],
)
def test_mistakes_are_one_sentence(argv, words):
    with pytest.raises(UserError, match=words):
        scale_tables.main(argv)


# ---------------------------------------------------------------- SLURM
def test_the_slurm_file_starts_one_task_a_machine(tmp_path):
    """With programs of the names that SLURM has, for machine 1 of 2; Accelerate's own parser reads what comes out."""
    write = {
        "scontrol": "echo node-a; seq -f node-%g 20000",  # more than a pipe holds: who reads a part breaks it
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "accelerate": f'printf "%s\\0" "$@" > {tmp_path}/said',
    }
    for name, line in write.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_ID": "70123",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "recipes/accelerate/slurm.sbatch"), "ppo", "--config", "a b.yaml", "--seed", "3"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    launch, *said = (tmp_path / "said").read_text().rstrip("\0").split("\0")
    args = launch_command_parser().parse_args(said)
    assert launch == "launch" and args.config_file == "recipes/accelerate/machines.yaml"
    assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, 1)
    assert (args.main_process_ip, args.main_process_port) == ("node-a", 30123)
    assert args.training_script == "recipes/ppo.py"
    assert args.training_script_args == ["--config", "a b.yaml", "--seed", "3", "--resume"]
