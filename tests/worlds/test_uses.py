"""The recipes for translation and code: what they read, and that small versions of them run from start to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sandboxed import sandboxed

from pipeline.config import DataArguments
from pipeline.data import loading as data
from pipeline.watching.terminal import next_step
from rewards import build_rewards

ROOT = Path(__file__).resolve().parents[2]
MBPP = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\n    return x + {number}",
        "test_list": [f"assert add({x}) == {x + number}" for x in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for number in range(1, 13)
]


def settings_of(recipe: str, stage: str) -> dict:
    return yaml.safe_load((ROOT / "recipes" / recipe / f"{stage}.yaml").read_text("utf-8"))


def rows_of(settings: dict, kind: str, source: str) -> list[dict]:
    known = ("prompt_template", "completion_template", "as_messages")
    args = DataArguments(dataset=source, **{key: settings[key] for key in known if key in settings})
    return data.load(args, kind)[0].to_list()


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_parallel_recipe_reads_two_files_and_its_rewards_know_the_translation(tmp_path):
    (tmp_path / "train.en").write_text("The owl sleeps.\nA goat.\n")
    (tmp_path / "train.de").write_text("Die Eule schläft.\nEine Ziege.\n", encoding="utf-8")
    source = f"{tmp_path}/train.{{en,de}}"
    row = rows_of(settings_of("parallel", "sft"), "sft", source)[0]
    assert row["prompt"] == [{"role": "user", "content": "Translate into German.\nThe owl sleeps."}]
    assert row["completion"] == [{"role": "assistant", "content": "Die Eule schläft."}]
    ppo = settings_of("parallel", "ppo")
    rows = rows_of(ppo, "prompts", source)
    assert [row["prompt"] for row in rows][0] == row["prompt"]
    said = [[{"role": "assistant", "content": text}] for text in ("Die Eule schläft.", "Eine Ziege.")]
    for reward, _ in build_rewards(ppo["rewards"]):
        scores = reward([row["prompt"] for row in rows], said, target=[row["target"] for row in rows])
        assert scores == [pytest.approx(1.0)] * 2


@sandboxed
def test_the_mbpp_recipe_reads_mbpps_columns_and_its_tests_pass_the_solution(tmp_path):
    source = str(write_jsonl(tmp_path / "mbpp.jsonl", MBPP))
    row = rows_of(settings_of("mbpp", "sft"), "sft", source)[0]
    asked = "Write a function to add 1.\nWrite one Python function. It has to pass tests such as:\nassert add(0) == 1"
    assert row["prompt"] == [{"role": "user", "content": asked}]
    assert row["completion"][0]["content"] == "```python\ndef add(x):\n    return x + 1\n```"
    ppo = settings_of("mbpp", "ppo")
    code = build_rewards(ppo["rewards"])[0].reward
    rows = rows_of(ppo, "prompts", source)[:2]
    columns = {name: [row[name] for row in rows] for name in ("test_list", "test_setup_code")}
    prompts, solution = [row["prompt"] for row in rows], row["completion"]
    assert code(prompts, [solution] * 2, **columns) == [1.0, 0.0]


GSM8K = {
    "question": "Ida reads 12 pages a day for 6 days. How many pages is that?",
    "answer": "She reads 12 * 6 = <<12*6=72>>72 pages.\n#### 72",
}


def test_the_gsm8k_recipe_reads_gsm8ks_columns_and_its_rewards_know_the_solution(tmp_path):
    source = str(write_jsonl(tmp_path / "gsm8k.jsonl", [GSM8K] * 4))
    row = rows_of(settings_of("gsm8k", "sft"), "sft", source)[0]
    assert row["prompt"][0]["content"].startswith(GSM8K["question"] + "\nWork it out")
    assert row["completion"] == [{"role": "assistant", "content": GSM8K["answer"]}]
    ppo = settings_of("gsm8k", "ppo")
    rows = rows_of(ppo, "prompts", source)
    assert (
        ppo["prompt_template"] == settings_of("gsm8k", "sft")["prompt_template"] and rows[0]["prompt"] == row["prompt"]
    )
    texts = [GSM8K["answer"], "It is 72.", "#### 71", "no"]
    said = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {"answer": [row["answer"] for row in rows]}
    scores = [reward([row["prompt"] for row in rows], said, **columns) for reward, _ in build_rewards(ppo["rewards"])]
    assert scores == [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]


def test_after_sft_comes_the_stage_that_the_recipe_has(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert next_step("reward", "runs/translation/sft") == "make ppo RECIPE=recipes/translation"
    assert next_step("reward", "runs/dialogue/sft") == "make reward RECIPE=recipes/dialogue"
    assert next_step("ppo", "runs/code/sft") == "make ppo RECIPE=recipes/code"


def run_stage(folder: Path, stage: str, settings: dict) -> str:
    (folder / f"{stage}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "recipes" / f"{stage}.py"), "--config", f"{stage}.yaml"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


FEW = {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "no"}
ROLLOUTS = {"total_episodes": 4, "max_steps": -1, "eval_samples": 4, "num_mini_batches": 1, "num_iterations": 1}


@pytest.mark.slow
@sandboxed
@pytest.mark.parametrize(("recipe", "measure"), [("translation", "right"), ("code", "hidden")])
def test_a_small_version_of_the_recipe_runs(recipe, measure, tmp_path):
    size = {"sft_rows": 60, "prompt_rows": 40, "heldout_rows": 8, "pretraining_texts": 200}
    small = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_layers": 1}
    run_stage(tmp_path, "base", settings_of(recipe, "base") | size | small)
    run_stage(tmp_path, "sft", settings_of(recipe, "sft") | FEW)
    run_stage(tmp_path, "ppo", settings_of(recipe, "ppo") | FEW | ROLLOUTS | {"max_completion_length": 16})
    summary = json.loads((tmp_path / "runs" / recipe / "ppo" / "summary.json").read_text("utf-8"))
    assert summary["heldout"] == 4 and 0.0 <= summary["after"][measure] <= 1.0
    run_stage(tmp_path, "eval", settings_of(recipe, "eval") | {"max_completion_length": 16, "use_cpu": True})


@pytest.mark.slow
@sandboxed
@pytest.mark.parametrize("recipe", ["parallel", "mbpp"])
def test_the_real_recipe_runs_on_a_small_model(recipe, tmp_path, tiny_model_folder):
    """All settings but the model, the data and the size are the recipe's."""
    if recipe == "mbpp":
        write_jsonl(tmp_path / "rows.jsonl", MBPP)
        source = {"dataset": "rows.jsonl", "eval_split": None, "eval_fraction": 0.3}
    else:
        for part, count in (("train", 12), ("valid", 4)):
            for language, word in (("en", "goat"), ("de", "Ziege")):
                lines = [f"{part} {word} {number}\n" for number in range(count)]
                (tmp_path / f"{part}.{language}").write_text("".join(lines))
        source = {"dataset": "train.{en,de}", "eval_dataset": "valid.{en,de}"}
    changed = FEW | source | {"model_name_or_path": str(tiny_model_folder), "dtype": "float32"}
    run_stage(tmp_path, "sft", settings_of(recipe, "sft") | changed | {"gradient_accumulation_steps": 1})
    rollouts = ROLLOUTS | {"max_completion_length": 8, "gradient_accumulation_steps": 1}
    said = run_stage(tmp_path, "ppo", settings_of(recipe, "ppo") | changed | rollouts)
    assert f"The result lies in runs/{recipe}/ppo" in said
    judged = {"candidates": [{"ppo": f"runs/{recipe}/ppo"}], "reference": None, "dtype": "float32", "use_cpu": True}
    judged |= {"dataset": source.get("eval_dataset", "rows.jsonl"), "dataset_split": "train"}
    run_stage(tmp_path, "eval", settings_of(recipe, "eval") | judged | {"max_completion_length": 8, "eval_samples": 3})
