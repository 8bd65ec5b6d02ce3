"""Output folders: never overwritten, readable at any moment, no secrets in them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import TrainerControl, TrainerState

from pipeline.cli import parse
from pipeline.config import DataArguments, ModelArguments, SFTStage
from pipeline.errors import UserError
from pipeline.runs import claim
from pipeline.runs.folder import KEPT_LOGS, RunFolder, read_metrics

ROOT = Path(__file__).resolve().parents[2]
ALL = (ModelArguments, DataArguments, SFTStage)


def test_new_and_empty_folders_are_taken(tmp_path):
    assert RunFolder.create(tmp_path / "a" / "b").path.is_dir()
    (tmp_path / "empty").mkdir()
    assert list(RunFolder.create(tmp_path / "empty").path.iterdir()) == []


def test_a_folder_goes_away_with_a_start_that_failed_if_the_run_had_made_it(tmp_path):
    @claim.ends_with
    def run(folder):
        (RunFolder.create(folder).path / "config.yaml").write_text("x")
        raise UserError("the data are not there")

    (tmp_path / "mine").mkdir()
    for name in ("mine", "new", "above/below"):
        with pytest.raises(UserError, match="the data"):
            run(tmp_path / name)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["above", "mine"]  # other runs may have theirs above it


def test_a_folder_with_results_is_refused_and_left_alone(tmp_path):
    (tmp_path / "result.txt").write_text("mine")
    with pytest.raises(UserError) as error:
        RunFolder.create(tmp_path)
    for part in (str(tmp_path), "--output_dir", "remove or rename"):
        assert part in str(error.value)
    assert (tmp_path / "result.txt").read_text() == "mine"
    assert RunFolder.create(tmp_path, resume=True).path == tmp_path


def test_no_folder_named_or_a_file_in_its_place(tmp_path):
    with pytest.raises(UserError, match="output_dir is not set"):
        RunFolder.create(None)
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder.create(tmp_path / "f")
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.create(tmp_path / "f" / "below")


def test_config_holds_settings_versions_and_seed_but_no_token(tmp_path):
    model, data, config = parse(
        *ALL, argv=["--output_dir", "x", "--seed", "7", "--lora_r", "3", "--hub_token", "hf_secret", "--use_cpu"]
    )
    RunFolder(tmp_path).write_config(model, data, config)
    text = (tmp_path / "config.yaml").read_text("utf-8")
    found = yaml.safe_load(text)
    assert "hf_secret" not in text and "hub_token" not in found
    assert (found["seed"], found["lora_r"], found["use_cpu"]) == (7, 3, True)
    assert set(found["versions"]) == {
        *("plumbline", "python", "threads", "torch", "trl", "transformers", "peft", "accelerate", "datasets")
    }
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_config_can_be_used_again(tmp_path):
    first = parse(*ALL, argv=["--output_dir", "x", "--learning_rate", "0.125", "--max_length", "77", "--use_cpu"])
    RunFolder(tmp_path).write_config(*first)
    again = parse(*ALL, argv=["--config", str(tmp_path / "config.yaml")])
    assert again[0] == first[0] and again[1] == first[1]
    assert (again[2].learning_rate, again[2].max_length, again[2].use_cpu) == (0.125, 77, True)
    assert again[2].to_dict() == first[2].to_dict()


def test_metrics_are_appended_by_the_main_process_only(tmp_path):
    folder = RunFolder(tmp_path)
    callback = folder.metrics_callback()
    state = TrainerState(global_step=3, epoch=0.5, is_world_process_zero=True)
    callback.on_log(None, state, TrainerControl(), logs={"loss": 1.5})
    state.global_step = 4
    callback.on_log(None, state, TrainerControl(), logs={"loss": 1.25, "näme": "ü"})
    state.is_world_process_zero = False
    callback.on_log(None, state, TrainerControl(), logs={"loss": 9.0})
    want = [{"step": 3, "epoch": 0.5, "loss": 1.5}, {"step": 4, "epoch": 0.5, "loss": 1.25, "näme": "ü"}]
    assert read_metrics(tmp_path) == want
    assert read_metrics(tmp_path / "metrics.jsonl") == want


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "nowhere")


def test_summary_replaces_the_old_one_whole(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_summary({"a": 1, "long": "x" * 1000})
    folder.write_summary({"a": "ü"})
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == {"a": "ü"}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_other_ranks_write_nothing(tmp_path):
    code = (
        "import sys; from pipeline.runs.folder import RunFolder; from pipeline.safety.console import say\n"
        "from pipeline.config import DataArguments\n"
        "folder = RunFolder.create(sys.argv[1]); folder.write_summary({}); folder.write_config(DataArguments())\n"
        "say('hello')\n"
    )
    env = os.environ | {"RANK": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "" and not (tmp_path / "x").exists()


def test_a_long_run_keeps_its_logs_in_the_file_and_the_last_ones_in_memory(tmp_path):
    metrics, state = RunFolder(tmp_path).metrics_callback(), TrainerState(is_world_process_zero=True)
    for step in range(KEPT_LOGS + 30):
        logs = {"eval_loss": 2.0} if step in (1, 40) else {"loss": 1.0}
        state.global_step = step
        state.log_history.append(logs | {"step": step})
        metrics.on_log(None, state, TrainerControl(), logs=logs)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(KEPT_LOGS + 30))
    assert [row["step"] for row in state.log_history] == [1, *range(30, KEPT_LOGS + 30)]
