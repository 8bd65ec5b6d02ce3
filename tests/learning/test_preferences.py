"""A reward model learns what tells its pairs apart, and nothing where nothing does."""

import json
import random
from pathlib import Path

import pytest

from pipeline.config import DataArguments, ModelArguments, RewardStage
from pipeline.stages import reward_model

WORDS = "boat cloud drum field glass horse lamp moss pearl river stone tower".split()
HELDOUT = 300


def separable(seed: int, pairs: int) -> list[dict]:
    """Pairs of three random words each; the chosen text has "thanks" somewhere, the rejected one has not."""
    draw = random.Random(seed)
    rows = []
    for _ in range(pairs):
        chosen, rejected = draw.sample(WORDS, 2), draw.sample(WORDS, 3)
        chosen.insert(draw.randrange(3), "thanks")
        rows.append({"prompt": "say:", "chosen": " " + " ".join(chosen), "rejected": " " + " ".join(rejected)})
    return rows


def shuffled(rows: list[dict], seed: int) -> list[dict]:
    """Each pair turned round with probability ½: the labels say nothing about the texts."""
    draw = random.Random(seed + 100)
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    return [draw.choice(both) for both in zip(rows, turned, strict=True)]


def train(rows: list[dict], base: Path, seed: int) -> dict:
    """The summary of the reward-model stage on `rows`, the last HELDOUT of which are held out."""
    for name, part in (("train.jsonl", rows[:-HELDOUT]), ("heldout.jsonl", rows[-HELDOUT:])):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return reward_model.run(
        ModelArguments(model_name_or_path=str(base), lora_r=8),
        DataArguments(dataset="train.jsonl", eval_dataset="heldout.jsonl"),
        RewardStage(
            output_dir=f"runs/x/reward{seed}",
            num_train_epochs=3,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=100,
            learning_rate=1e-2,
            max_length=64,
            save_strategy="no",
            use_cpu=True,
            seed=seed,
        ),
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_separable_pairs(seed, tmp_path, tiny_model_folder, monkeypatch):
    """600 pairs, 3 epochs of 16 pairs a step (114 steps): accuracy 1.0, 1.0, 1.0 (seeds 0, 1, 2), 3 s each."""
    monkeypatch.chdir(tmp_path)
    summary = train(separable(seed, 600 + HELDOUT), tiny_model_folder, seed)
    assert summary["heldout_pairs"] >= 200  # a pair that is in the training data as well is left out
    assert summary["accuracy"] > 0.95


@pytest.mark.slow
def test_shuffled_labels(tmp_path, tiny_model_folder, monkeypatch):
    """Held-out labels are fair coins, so whatever was learned is right on a binomial share: ½ ± √(¼/n).

    Measured on 300 pairs each: 0.490, 0.517, 0.500 (seeds 0, 1, 2), together 0.502 ± 0.017; training loss 0.694 =
    log 2.
    """
    monkeypatch.chdir(tmp_path)
    right = pairs = 0
    for seed in range(3):
        summary = train(shuffled(separable(seed, 600 + HELDOUT), seed), tiny_model_folder, seed)
        right += summary["accuracy"] * summary["heldout_pairs"]
        pairs += summary["heldout_pairs"]
    assert pairs >= 3 * 200
    assert abs(right / pairs - 0.5) < 3.29 * (0.25 / pairs) ** 0.5  # by chance, one run in a thousand lies further off
