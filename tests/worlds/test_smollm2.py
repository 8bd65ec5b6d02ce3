"""The recipe of the real model, from the package index to one PPO update. Slow; skipped where it cannot be had."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.worlds.base import WorldSettings, write_data
from pipeline.worlds.instructions import make_data
from tests.support import smollm2

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def launch(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "recipes" / f"{script}.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_base_is_the_published_model():
    folder = smollm2.folder()  # made only if parameters, greedy answer and perplexity are as they should be
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (576, 30, 49152)
    assert "quantization_config" not in config
    assert "The capital of France is Paris" in (folder / "README.md").read_text()


def test_one_ppo_update_on_the_real_model(tmp_path):
    base = smollm2.folder()
    recipe = yaml.safe_load((ROOT / "recipes/smollm2/ppo.yaml").read_text())
    data = {"prompt_rows": 16, "heldout_rows": 4}
    write_data(make_data(WorldSettings(world="instructions", **data)), tmp_path)
    small = {"per_device_train_batch_size": 4, "num_mini_batches": 1, "total_episodes": 4, "max_completion_length": 16}
    rewards = [{**reward, "path": str(base)} if "path" in reward else reward for reward in recipe["rewards"]]
    recipe |= small | {
        "model_name_or_path": str(base),
        "dtype": "float32",
        "rewards": rewards,
        "dataset": str(tmp_path / "prompts_train.jsonl"),
        "eval_dataset": str(tmp_path / "prompts_heldout.jsonl"),
        "output_dir": str(tmp_path / "ppo"),
    }
    del recipe["adapter_path"]
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(recipe))
    launch("ppo", "--config", str(tmp_path / "ppo.yaml"))
    rows = [json.loads(line) for line in (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()]
    [update] = [row for row in rows if "ratio/first" in row]
    assert update["ratio/first"] == 0  # before the first step the policy is the one that sampled
    assert update["grad_norm"] > 0
    assert (tmp_path / "ppo" / "adapter_model.safetensors").is_file()
