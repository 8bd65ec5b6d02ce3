"""A base that processes share (FSDP 2), on the CPU and gloo: PPO and its kin are those of one process, and a process
holds what is said of it.

In float32 with SGD. What is compared are sums in another order: 8 completions at once, or 4 or 2 on each process. The
largest difference seen is 4e-6 (A2C); what is compared has moved by at least MOVED.
"""

from pathlib import Path

import pytest
import shared_runs
import torch
import toy

from pipeline.memory import estimate, scale
from pipeline.memory.estimate import Architecture, Precision
from pipeline.memory.scale import Plan

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests/support/distributed/shared_base.py"
TOLERANCE, MOVED = 2e-5, 2e-3
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
MODEL = Architecture.of(toy.build_model(num_hidden_layers=3).config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    shared_runs.prepare(folder)
    return folder


def processes(warm, folder, count: int, kinds) -> list[dict]:
    """What each of so many processes reports of the runs."""
    for done in warm.ranks(count, [SCRIPT, folder, ",".join(kinds)], folder, FSDP):
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}of{count}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def two(warm, folder):
    return processes(warm, folder, 2, ["ppo", "counted"])


def same(found: list[dict], expected: dict) -> None:
    assert set(found[0]["end"]) == set(expected["end"])
    for name, start in expected["start"].items():
        assert all(torch.equal(found[0]["end"][name], other["end"][name]) for other in found[1:]), name
        assert (expected["end"][name] - start).abs().max() > MOVED, f"{name} hardly moved"
        torch.testing.assert_close(found[0]["end"][name], expected["end"][name], atol=TOLERANCE, rtol=0, msg=name)


def test_two_processes_that_share_the_base_are_one(folder, two):
    same([report["ppo"] for report in two], shared_runs.train(folder, "ppo"))


@pytest.mark.slow  # 8 s each
@pytest.mark.parametrize("kind", [kind for kind in shared_runs.KINDS if kind not in ("ppo", "counted")])
def test_so_they_are_with_other_settings(warm, tmp_path, kind):
    shared_runs.prepare(tmp_path)
    same([report[kind] for report in processes(warm, tmp_path, 2, [kind])], shared_runs.train(tmp_path, kind))


@pytest.mark.slow  # four processes on two cores
def test_four_processes_that_share_the_base_are_one(warm, folder):
    four = processes(warm, folder, 4, ["ppo"])
    same([report["ppo"] for report in four], shared_runs.train(folder, "ppo"))


def test_a_process_holds_its_part_and_two_whole_layers_at_most(two):
    """Counted from storages: its part, the layer that runs, and the next one, which is gathered meanwhile. Norms in
    layers are 32 numbers of 1952, which the formula leaves out."""
    base = sum(p.numel() for p in toy.build_model(num_hidden_layers=3).parameters()) * 4
    for report in two:
        seen = report["ppo"]["seen"]
        assert report["ppo"]["adapters whole"]
        assert seen["at rest"] == pytest.approx(base - MODEL.in_linears * 4 / 2, rel=0.02)
        assert seen["most"] == pytest.approx(estimate.shared_base(MODEL, Precision(4), 2), rel=0.02)


def test_what_an_update_gathers_is_what_the_page_says(two):
    """Of an update that samples nothing: policy, reference, critic and reward model look once; in each of two epochs
    policy and critic go forward and backward. Whole sizes are counted, of which (n - 1)/n is sent. The first layer's
    backward pass gathers one layer more: FSDP takes what ran before it, in a pass without gradient, for the next."""
    plan = Plan(processes=2, rows=4, episodes=4, epochs=2)
    assert scale.passes(plan, vllm=True) == 4 + 2 * 2 * 2
    assert scale.gathered(MODEL, Precision(4), plan, vllm=True) == 12 * MODEL.in_linears * 4 / 2
    layer = (MODEL.in_linears // 3 + 2 * 16) * 4  # its norms too
    for report in two:
        assert report["counted"]["gathered"] == (12 * 3 + 1) * layer


def test_what_is_sent_to_vllm_is_whole(folder, two):
    """The adapter as it is after the last run of the script, on each process; saving it takes no other one along."""
    last = two[0]["counted"]["end"]
    for report in two:
        assert len(report["sent"]) == 2 * 7 * 3  # A and B of seven linear layers in three blocks
        for name, weight in report["sent"].items():
            assert torch.equal(weight, last[name.removesuffix("weight") + "default.weight"]), name
