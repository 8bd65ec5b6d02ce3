"""`train_sampling_strategy: group_by_length`: batches of like length, every row once, the same ones after a stop."""

import json
import os
import random
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from safetensors.torch import load_file
from torch.utils.data import BatchSampler

from pipeline.config import DataArguments, ModelArguments, RewardStage, SFTStage
from pipeline.data.grouping import GroupedByLength, GroupsByLength
from pipeline.stages import reward_model, sft
from rewards import Learned

LENGTHS = random.Random(0).choices(range(1, 100), k=323)


def batches(sampler: GroupedByLength, size: int) -> list[list[int]]:
    rows = list(sampler)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_every_row_once_in_batches_of_like_length_and_mixed_order():
    sampler = GroupedByLength(LENGTHS, 8, seed=0)
    found = batches(sampler, 8)
    assert sorted(row for batch in found for row in batch) == list(range(323)) and len(sampler) == 323
    assert max(LENGTHS) in [LENGTHS[row] for row in found[0]]  # too little memory shows at once
    spreads = [max(LENGTHS[row] for row in batch) - min(LENGTHS[row] for row in batch) for batch in found[1:-1]]
    # 323 rows in four parts of 80, sorted: ten batches over about a hundred lengths
    assert sum(spreads) / len(spreads) < 15
    longest = [max(LENGTHS[row] for row in batch) for batch in found[1:-1]]
    falls = sum(after < before for before, after in zip(longest, longest[1:], strict=False))
    assert 0.3 < falls / len(longest) < 0.7  # sorted they would fall nine times in ten


def test_another_order_in_each_epoch_and_the_same_one_again():
    sampler, again = GroupedByLength(LENGTHS, 8, seed=0), GroupedByLength(LENGTHS, 8, seed=0)
    first = list(sampler)
    torch.manual_seed(5)  # draws from no generator but its own
    assert list(again) == first
    for each in (sampler, again):
        each.set_epoch(1)
    assert list(sampler) == list(again) != first
    assert list(GroupedByLength(LENGTHS, 8, seed=1)) != first


def test_a_resumed_epoch_of_several_processes_has_its_own_order():
    """The loader as Accelerate makes it for one of two processes; its `set_epoch` does not reach the sampler."""

    class Epochs:
        def _run_epoch(self, *, epoch, train_dataloader):
            train_dataloader.set_epoch(epoch)
            self.rows = [row for batch in train_dataloader for row in batch.tolist()]

    class Grouped(GroupsByLength, Epochs):
        _order = GroupedByLength(LENGTHS, 8, seed=0)

    pairs = BatchSamplerShard(BatchSampler(Grouped._order, 4, drop_last=False), num_processes=2, process_index=0)
    loader = skip_first_batches(DataLoaderShard(range(323), batch_sampler=pairs), 5)
    trainer = Grouped()
    trainer._run_epoch(epoch=1, train_dataloader=loader)
    wanted = GroupedByLength(LENGTHS, 8, seed=0)
    wanted.set_epoch(1)
    order = list(wanted)
    halves = [row for start in range(5 * 8, 320, 8) for row in order[start : start + 4]]
    assert trainer.rows[: len(halves)] == halves


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17])
def test_few_rows(count):
    assert sorted(GroupedByLength(LENGTHS[:count], 8, seed=0)) == list(range(count))


# ------------------------------------------------------------ the stages
WORDS = ["a", "bb" * 3, "c" * 14, "d" * 30]
ROWS = {
    "sft": [{"prompt": f"say {i} =>\n", "completion": WORDS[i % 4]} for i in range(10, 58)],
    "reward": [{"prompt": f"say {i}", "chosen": WORDS[i % 4], "rejected": WORDS[i % 4][:-1]} for i in range(10, 58)],
}
STAGES = {"sft": (sft, "SFT", SFTStage), "reward": (reward_model, "Reward", RewardStage)}


def run(kind: str, model: Path, out: str, stop_after: int | None = None, **settings) -> list[tuple[int, int]]:
    """Runs a stage on ROWS, or stops it by Ctrl-C after some steps. Returns ids and tokens of each batch."""
    module, name, stage = STAGES[kind]
    shapes, base = [], getattr(module, name)

    class Watched(base):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if model.training:
                shapes.append((inputs["input_ids"].numel(), int(inputs["attention_mask"].sum())))
                if len(shapes) == stop_after:
                    os.kill(os.getpid(), signal.SIGINT)
            return super().compute_loss(model, inputs, *args, **kwargs)

    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    stopped = pytest.raises(SystemExit) if stop_after else nullcontext()
    with pytest.MonkeyPatch.context() as patch, stopped:
        patch.setattr(module, name, Watched)
        module.run(
            ModelArguments(model_name_or_path=str(model), lora_r=4),
            DataArguments(dataset="rows.jsonl", **({"eval_fraction": 0.25} if kind == "sft" else {})),
            stage(
                output_dir=out,
                **{"use_cpu": True, "max_length": 64, "per_device_train_batch_size": 2, "num_train_epochs": 2},
                **{"per_device_eval_batch_size": 3, "train_sampling_strategy": "group_by_length"} | settings,
            ),
        )
    return shapes


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_a_stage_pads_little_keeps_its_held_out_rows_in_order_and_goes_on_with_the_same_batches(
    kind, tmp_path, tiny_model_folder, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    grouped = run(kind, tiny_model_folder, "whole")
    ids, tokens = map(sum, zip(*grouped, strict=True))
    assert ids < 1.15 * tokens  # in random order 1.4
    # stopped in the second epoch, it goes on with the batches that were to come
    before = run(kind, tiny_model_folder, "stopped", stop_after=len(grouped) // 2 + 2)
    after = run(kind, tiny_model_folder, "stopped", resume=True)
    assert before + after == grouped
    whole, again = (load_file(Path(out, "adapter_model.safetensors")) for out in ("whole", "stopped"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    if kind == "reward":  # the report's pairs stand beside their own scores
        pairs = [json.loads(line) for line in Path("whole/pairs.jsonl").read_text().splitlines()]
        reward = Learned(path="whole")
        scores = reward([pair["prompt"] for pair in pairs], [pair["chosen"] for pair in pairs])
        assert [pair["score_chosen"] for pair in pairs] == pytest.approx(scores, abs=1e-4)
