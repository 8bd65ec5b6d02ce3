"""A finished run's folder."""

import json
from pathlib import Path

import yaml


def make_run(folder: Path, kind: str = "policy", summary=None, config=None, samples=None, base="my-org/base") -> Path:
    """A run's folder with everything but weights; figures that a pencil can check."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "policy": {
            "algorithm": "ppo",
            "before": {"bleu": 0.25, "gold": 0.5, "length": 8.0},
            "after": {"bleu": 0.75, "gold": 0.5, "length": 6.0},
            "greedy": {"before": {"bleu": 0.3, "gold": 0.6}, "after": {"bleu": 0.8, "gold": 0.7}},
            "kl": 1.5,
            "heldout": 4,
            "episodes": 64,
            "tokens": 512,
        },
        "reward": {"stage": "reward", "accuracy": 0.75, "accuracy_se": 0.05, "margin": 1.25, "log_loss": 0.5}
        | {
            "calibration_error": 0.0625,
            "score_mean": 0.0,
            "score_std": 1.0,
            "heldout_pairs": 75,
            "pairs": 9,
            "steps": 3,
        },
        "sft": {
            "stage": "sft",
            "heldout_loss": {"before": 2.0, "after": 1.5},
            "rows": 9,
            "heldout_rows": 3,
            "steps": 3,
        },
    }[kind]
    figures |= {"seconds": 3725.0, "seed": 0, "dtype": "float32", "hardware": "2 CPU cores (x86_64)"} | (summary or {})
    settings = {
        "dataset": "my-org/data",
        "output_dir": "runs/mine/ppo",
        "learning_rate": 0.001,
        "kl_coef": 0.03,
        "rewards": [{"name": "bleu", "weight": 0.5, "column": "references"}] if kind == "policy" else None,
        "referee": "field_notes" if kind == "policy" else None,
    } | (config or {})
    if samples is None and kind == "policy":
        samples = [
            {
                "prompt": f"prompt {i}\n",
                "before": f"before {i}",
                "after": f"after {i}",
                "scores_before": {"bleu": 0.25, "gold": 0.5},
                "scores_after": {"bleu": 0.75, "gold": 0.5},
            }
            for i in range(4)
        ]
    metrics = [{"step": i, "score": 0.1 * i, "kl": 0.0, "loss": 1.0, "accuracy": 0.5} for i in (1, 2, 3)]
    exams = [{"step": i, "score": 0.1, "kl": 0.0, "referee": {"gold": 0.5}} for i in (0, 3)]
    task = "SEQ_CLS" if kind == "reward" else "CAUSAL_LM"
    (folder / "summary.json").write_text(json.dumps(figures))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "task_type": task}))
    for name, rows in (
        ("metrics", metrics),
        ("heldout", exams if kind == "policy" else []),
        ("samples", samples or []),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
