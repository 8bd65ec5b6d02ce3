"""The reward-model stage on pairs that are learned at once."""

import json
from pathlib import Path

from pipeline.config import DataArguments, ModelArguments, RewardStage
from pipeline.stages import reward_ensemble, reward_model

PAIRS = [{"prompt": f"{a}{b} =>", "chosen": f" {a}{b}.", "rejected": f" {a}{b}!"} for a in "abcdef" for b in "uvwxyz"]


class Spy(reward_model.Reward):
    """TRL's trainer; the last one made can be looked at."""

    last: "Spy"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Spy.last = self


def runner(tmp_path, tiny_model_folder, monkeypatch):
    """A function that runs the stage on pairs; it returns (summary, output folder, the trainer)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reward_model, "Reward", Spy)

    def act(rows, out="runs/x/reward", model=None, dataset=None, **settings):
        if dataset is None:
            dataset = "pairs.jsonl"
            Path(dataset).write_text("".join(json.dumps(row) + "\n" for row in rows))
        defaults = {"num_train_epochs": 1, "save_strategy": "no", "use_cpu": True, "max_length": 64}
        summary = reward_ensemble.run(
            ModelArguments(**{"model_name_or_path": str(tiny_model_folder), "lora_r": 4} | (model or {})),
            DataArguments(
                dataset=str(dataset),
                max_rows=settings.pop("max_rows", None),
                eval_fraction=settings.pop("eval_fraction", 0.25),
            ),
            RewardStage(output_dir=out, **defaults | settings),
        )
        return summary, Path(out), Spy.last

    return act
