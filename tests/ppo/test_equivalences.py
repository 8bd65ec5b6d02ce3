"""Runs that must end with the same adapters: however a batch is cut up, padded, launched or recomputed.

Every run is two updates of two epochs, and what is compared is what it leaves: policy, critic and value head.

- The base is float64, so that a sum in another order hardly shows. What stays float32: TRL's log-probabilities (its
  fused LM head) and the advantages, the states that the value head reads, Llama's norms. Hence a TOLERANCE, about ten
  times what is seen; every tensor that is compared has moved a thousand times as far.
- The optimizer is SGD without clipping: AdamW and clipping divide the gradient by its own size, so a loss that is
  twice too large would go unseen. One kind of run is AdamW with clipping all the same, because recipes use it.
- Where runs sample in different batches or processes, `one_by_one` samples each prompt with random numbers of its
  own. The second rollout depends on the weights that the first update made.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
import toy
from equal_runs import KINDS, TWICE, cut, seeded, train
from warm import Done

from pipeline.ppo import PPOTrainer

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE, MOVED = 5e-6, 2e-3


def same(found, expected, atol=TOLERANCE) -> None:
    assert set(found["end"]) == set(expected["end"])
    for name, start in expected["start"].items():
        assert (expected["end"][name] - start).abs().max() > MOVED, f"{name} hardly moved"
        torch.testing.assert_close(found["end"][name], expected["end"][name], atol=atol, rtol=0, msg=name)


def same_bits(found, expected) -> None:
    same(found, expected, atol=0)


# ---------------------------------------------------------------- 1 how a batch is cut up
@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process, 8 completions at once."""
    return {kind: train(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_is_a_larger_batch(tmp_path, whole, kind):
    same(train(tmp_path, kind, **cut(1, 8)), whole[kind])


def test_accumulation_is_a_larger_batch_when_trl_samples(tmp_path):
    """TRL samples the 8 completions of a rollout at once, however they are cut up afterwards."""
    same(train(tmp_path, rollout_func=None, **cut(2, 4)), train(tmp_path, rollout_func=None))


SCRIPT = ROOT / "tests/support/distributed/equivalences.py"


def reports(folder: Path, *processes: Done) -> list[dict]:
    """What each process of SCRIPT wrote."""
    for done in processes:
        assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("rank*.pt"))]


@pytest.fixture(scope="module")
def two_processes(warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return reports(folder, *warm.ranks(2, [SCRIPT, folder], folder))


@pytest.mark.parametrize(("kind", "size", "accumulation"), TWICE)
def test_two_processes_are_one_of_twice_the_batch(whole, two_processes, kind, size, accumulation):
    first, second = (report[f"{kind} {size} x {accumulation}"] for report in two_processes)
    same_bits(second, first)
    same(first, whole[kind])


# ---------------------------------------------------------------- 2 padding
SHORT = ["cd", "ed", "dc", "ca", "dd", "ec", "ce", "de"]
LONG = "cdecdecde"


def only_short(prompts, completions, **columns):
    """No score for the long prompt: its completion teaches nothing, but it pads the others."""
    scores = toy.letters(prompts, completions)
    return [None if prompt == LONG else score for prompt, score in zip(prompts, scores, strict=True)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_left_padding_is_no_padding(tmp_path, kind):
    """Prompts of one length need none, until a longer one comes into their batch or pad_to_multiple_of is set."""
    settings = {"prompts": SHORT, "reward": only_short}
    unpadded = train(tmp_path, kind, **settings)
    batch_mate = {"prompts": [*SHORT, LONG], "per_device_train_batch_size": 9, "total_episodes": 18}
    for padding in (batch_mate, {"pad_to_multiple_of": 8}):
        same(train(tmp_path, kind, **settings | padding), unpadded)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_tokenizers_padding_side_does_not_matter(tmp_path, kind):
    left, right = (
        train(tmp_path, kind, rollout_func=None, tokenizer_=toy.tokenizer(padding_side=side))
        for side in ("left", "right")
    )
    same_bits(right, left)


# ---------------------------------------------------------------- 3 gradient checkpointing
# GPT-2 has it by default
WITH_DROPOUT = {"llama": partial(toy.build_model, attention_dropout=0.4), "gpt2": toy.build_gpt2}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_no_bit(tmp_path, kind):
    """Of float32 runs that TRL samples; nor does dropout that model and adapter ask for, as it is off."""
    settings = {"double": False, "rollout_func": None}
    plain = train(tmp_path, kind, **settings)
    settings |= {"build": WITH_DROPOUT[kind], "adapter": {"lora_dropout": 0.4}}
    for checkpointing in (False, True):
        same_bits(train(tmp_path, kind, gradient_checkpointing=checkpointing, **settings), plain)


# ---------------------------------------------------------------- 4, 5 launcher and seed
@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return seeded(tmp_path_factory.mktemp("plain"))


def test_the_same_seed_gives_the_same_bits(tmp_path, plain):
    same_bits(seeded(tmp_path, junk=7), plain)


def test_another_seed_gives_other_bits(tmp_path, plain):
    other = seeded(tmp_path, seed=43)
    for name in plain["end"]:
        assert not torch.equal(other["end"][name], plain["end"][name]), name
        if "lora_A" in name:  # drawn at random, where B and the value head start at 0
            assert not torch.equal(other["start"][name], plain["start"][name]), name


def test_accelerate_launch_is_plain_python(warm, tmp_path, plain):
    file = ROOT / "recipes" / "accelerate" / "cpu.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", file]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    [report] = reports(tmp_path, warm.run([*launcher, SCRIPT, tmp_path], tmp_path, env=threads))
    same_bits(report["start and end"], plain)


# ---------------------------------------------------------------- 6 mini-batches
class Backwards(PPOTrainer):
    """Takes the micro-batches of each mini-batch in reverse."""

    def _by_mini_batch(self, micro_batches):
        micro_batches = super()._by_mini_batch(micro_batches)
        size = self.args.gradient_accumulation_steps
        return [m for i in range(0, len(micro_batches), size) for m in reversed(micro_batches[i : i + size])]


class LastFirst(PPOTrainer):
    """Takes the mini-batches in reverse."""

    def _by_mini_batch(self, micro_batches):
        micro_batches = super()._by_mini_batch(micro_batches)
        size = self.args.gradient_accumulation_steps
        return [m for i in reversed(range(0, len(micro_batches), size)) for m in micro_batches[i : i + size]]


@pytest.fixture(scope="module")
def two_mini_batches(tmp_path_factory):
    return train(tmp_path_factory.mktemp("mini"), num_mini_batches=2, **cut(4, 1))


@pytest.mark.parametrize(("size", "accumulation", "cls"), [(1, 4, PPOTrainer), (2, 2, PPOTrainer), (2, 2, Backwards)])
def test_mini_batches_are_cut_up_and_ordered_at_will(tmp_path, two_mini_batches, size, accumulation, cls):
    """TRL shuffles the rows before it deals them out, and does so alike for every cut."""
    same(train(tmp_path, num_mini_batches=2, cls=cls, **cut(size, accumulation)), two_mini_batches)


def test_the_order_of_mini_batches_does_matter(tmp_path, two_mini_batches, whole):
    """So the test above would notice rows that change their mini-batch."""
    swapped = train(tmp_path, num_mini_batches=2, cls=LastFirst, **cut(2, 2))
    for other in (swapped, whole["llama"]):
        distances = [(other["end"][n] - p).abs().max() for n, p in two_mini_batches["end"].items()]
        assert max(distances) > MOVED
