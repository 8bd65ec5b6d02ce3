"""Recipes that make their data on the spot, from base to PPO by the commands of their YAMLs, much smaller."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "base": "--sft_rows 64 --prompt_rows 32 --heldout_rows 8 --pretraining_texts 64 --hidden_size 64 "
    "--intermediate_size 64 --num_layers 2",
    "sft": "--max_steps 2 --use_cpu",
    "ppo": "--total_episodes 16 --per_device_train_batch_size 4 --num_iterations 1 --max_completion_length 12 "
    "--eval_samples 4 --use_cpu",
}
USES = {
    "topics": ["base", "sft", "ppo", "ppo_stuffing"],
    "summarisation": ["base", "sft", "ppo"],
    "arithmetic": ["base", "sft", "ppo"],
}
MEASURES = {
    "topics": {"grammar", "on_topic", "stuffed"},
    "summarisation": {"facts", "invented", "perfect"},
    "arithmetic": {"right", "worked"},
}


def run(folder: Path, *command: str) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_a_use_from_base_to_ppo(tmp_path, use):
    for stage in USES[use]:
        name = stage.split("_")[0]
        command = [str(ROOT / f"recipes/{name}.py"), "--config", str(ROOT / f"recipes/{use}/{stage}.yaml")]
        run(tmp_path, *command, *SMALL[name].split())
    runs = tmp_path / "runs" / use
    for stage in USES[use][2:]:
        summary = json.loads((runs / stage / "summary.json").read_text("utf-8"))
        assert MEASURES[use] < set(summary["before"]) == set(summary["after"]) and summary["episodes"] == 16
        assert (runs / stage / "report.html").is_file()
    if use == "topics":
        run(tmp_path, "-m", "pipeline.report", str(runs / "ppo"), str(runs / "ppo_stuffing"))
        page = (runs / "reports.html").read_text("utf-8")
        assert "Held-out prompts, side by side" in page and "领域：" in page
