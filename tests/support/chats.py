"""Runs to chat with: base, SFT and PPO that nobody can mix up."""

import json
from pathlib import Path

import yaml
from conftest import build_tokenizer
from peft import LoraConfig, get_peft_model
from toy import randomize
from transformers import AutoModelForCausalLM

ROWS = [
    {"prompt": f"say {w} =>\n", "facts": [w], "references": [f"It is {w}."]} for w in ("red", "blue", "old", "new")
]


REWARDS = [
    {"name": "keyword", "column": "facts"},
    {"name": "length", "max": 3, "unit": "characters", "weight": 0.5, "clip": [-0.1, 0]},
    {"name": "bleu"},
]


def make_adapter(folder: Path, base: Path, seed: int, task_type="CAUSAL_LM") -> Path:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear", task_type=task_type)
    )
    randomize(model, "default", seed, scale=5.0)  # three speakers that nobody can mix up
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def make_run(folder: Path, base: Path, rows=ROWS, name="ppo", **changes) -> Path:
    """A run folder as a stage leaves it: adapter, tokenizer, config.yaml."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_name_or_path": str(base),
        "adapter_path": str(make_adapter(folder / "sft", base, seed=1)),
        "dtype": "float32",
        "dataset": str(folder / "prompts.jsonl"),
        "rewards": REWARDS,
        "algorithm": "ppo",
        "max_completion_length": 5,
        "temperature": 1.0,
        "seed": 0,
        "use_cpu": True,
        "versions": {"trl": "1"},
    }
    run = make_adapter(folder / name, base, seed=2)
    settings = {key: value for key, value in (settings | changes).items() if value is not None}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run
