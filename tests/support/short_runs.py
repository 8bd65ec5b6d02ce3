"""Runs of a few steps through the stages, as short as one can be."""

import json
import random
from pathlib import Path

import numpy as np
import torch

from pipeline.config import DataArguments, ModelArguments
from pipeline.exam.exam import RewardArguments
from pipeline.stages import ppo as stage

WORDS = [f"w{i}" for i in range(16)]


def noisy(prompts, completions, **columns):
    """Trains on the state of every global generator: one number drawn too many, and the adapter is another one."""
    return [random.random() + np.random.rand() + torch.rand(1).item() for _ in completions]


def prompts_file(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {w} =>\n", "facts": [w]}) + "\n" for w in WORDS))
    return path


def run_ppo(output: Path, base: Path, data: Path, rewards: list[dict], eval_every: int | None, **changes) -> dict:
    settings = {
        "use_cpu": True,
        "bf16": False,
        "total_episodes": 12,  # 3 updates of 4
        "per_device_train_batch_size": 4,
        "num_iterations": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "seed": 3,
    }
    return stage.run(
        ModelArguments(model_name_or_path=str(base), dtype="float32", lora_r=2),
        DataArguments(dataset=str(data), eval_fraction=0.25),
        RewardArguments(rewards=rewards, eval_every=eval_every, eval_samples=3, show_samples=0),
        stage.PPOStage(output_dir=str(output), **settings | changes),
    )


# of GRPO and RLOO
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_generations": 2,
    "num_iterations": 2,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "disable_tqdm": True,
    "seed": 3,
}
