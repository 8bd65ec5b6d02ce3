"""Trackers: off unless asked for, TensorBoard's files in the run folder with the very figures of metrics.jsonl."""

import importlib.util
import json
from pathlib import Path

import pandas
import pytest
import toy
from short_runs import prompts_file, run_ppo
from toy import ANSWERS
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from pipeline.config import DataArguments, GRPOStage, ModelArguments, RewardStage, SFTStage, trackers_of
from pipeline.errors import UserError
from pipeline.exam.exam import RewardArguments
from pipeline.ppo.config import PPOStage
from pipeline.runs.folder import read_metrics
from pipeline.stages import reward_model, sft, trl_stage
from pipeline.watching import boards, trackers

COMMON = {"use_cpu": True, "bf16": False, "save_strategy": "no"}
REWARDS = [{"name": "keyword", "column": "facts"}]
NASTY = "a|b <script>x</script> **bold** [link](http://x)\n\x1b[2J`code`"


def rows_file(path: Path, *columns: str) -> str:
    rows = [{"prompt": f"say w{i} =>\n"} | {column: f"{column} {i}" for column in columns} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_stage(stage: str, folder: Path, base: Path, report_to: str | list[str]) -> Path:
    """A run of two updates or steps in `folder`, with `report_to`."""
    model, output = ModelArguments(str(base), dtype="float32", lora_r=2), folder / stage
    if stage == "ppo":
        data, changes = prompts_file(folder), {"total_episodes": 8, "report_to": report_to}
        run_ppo(output, base, data, REWARDS, eval_every=1, **changes)
    elif stage == "grpo":
        settings = {"total_episodes": 8, "per_device_train_batch_size": 4, "num_generations": 2}
        settings |= {"max_completion_length": 6, "report_to": report_to}
        data = DataArguments(str(prompts_file(folder)), eval_fraction=0.25)
        rewards = RewardArguments(rewards=REWARDS, eval_samples=2, show_samples=0)
        trl_stage.run(model, data, rewards, GRPOStage(output_dir=str(output), **COMMON | settings))
    else:
        run, kind = {"sft": (sft.run, SFTStage), "reward": (reward_model.run, RewardStage)}[stage]
        columns = ("completion",) if stage == "sft" else ("chosen", "rejected")
        settings = {"max_steps": 2, "logging_steps": 1, "max_length": 64, "report_to": report_to}
        data = DataArguments(rows_file(folder / f"{stage}.jsonl", *columns), eval_fraction=0.25)
        run(model, data, kind(output_dir=str(output), **COMMON | settings))
    return output


def events(folder: Path):
    """What TensorBoard itself reads there."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    return read


def texts(read, name: str) -> dict[int, str]:
    return {e.step: e.tensor_proto.string_val[0].decode() for e in read.Tensors(f"{name}/text_summary")}


# ------------------------------------------------------------ TensorBoard
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "grpo"])
def test_tensorboard_has_the_figures_of_metrics_jsonl(stage, tmp_path, tiny_model_folder, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    output = run_stage(stage, tmp_path, tiny_model_folder, "tensorboard")
    read = events(output / "tensorboard")
    rows = read_metrics(output)
    wanted = {}
    for row in rows:
        for key, value in row.items():
            # Transformers' names: train/…, and eval/… for eval_…; `step` is the axis
            name = f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"
            if key not in ("step", "epoch") and value is not None:
                wanted.setdefault(name, []).append((row["step"], value))
    # float32, as TensorBoard keeps numbers
    names = [name for name in read.Tags()["scalars"] if not name.startswith("exam/")]  # test_boards.py
    found = {name: [(e.step, e.value) for e in read.Scalars(name)] for name in names}
    found.pop("train/epoch"), found.pop("eval/epoch", None)
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert [x for _, x in found[name]] == pytest.approx([x for _, x in points], rel=1e-6, abs=1e-12), name
    assert "train/loss" in found and ("eval/loss" in found) == (stage == "sft")
    assert not Path("runs").exists()  # where Transformers' evaluation before training would write
    if stage in ("ppo", "grpo"):
        table = texts(read, "completions")
        kept = {int(p.stem.split("_")[1]): pandas.read_parquet(p) for p in (output / "completions").iterdir()}
        assert table.keys() == {row["step"] for row in rows if "loss" in row} and table.keys() <= kept.keys()
        for step, text in table.items():
            head, _, *lines = text.splitlines()
            assert head == "| prompt | completion | keyword | advantage |" and len(lines) == 4
            assert [float(line.split(" | ")[2]) for line in lines] == pytest.approx(kept[step]["keyword"], abs=5e-4)
            advantages = [float(line.split(" | ")[3].rstrip(" |")) for line in lines]
            assert advantages == pytest.approx(kept[step]["advantage"], abs=5e-4)


def test_a_completion_in_the_table_is_neither_html_nor_markdown():
    kept = {
        "prompt": [[{"role": "user", "content": "c"}], "d"],
        "completion": [[{"role": "assistant", "content": NASTY}], "b"],
        "rewards": {"a_b": [0.5, float("nan")]},
        "advantages": [1.0, -1.0],
    }
    head, line, first, second = boards.completions_table(kept).split("\n")
    assert head == "| prompt | completion | a&#95;b | advantage |" and line == "| --- | --- | --- | --- |"
    shown = "a&#124;b &#60;script&#62;x&#60;/script&#62; &#42;&#42;bold&#42;&#42; &#91;link&#93;&#40;http://x&#41;"
    assert first == f"| c | {shown}<br>&#92;x1b&#91;2J&#96;code&#96; | 0.500 | 1.000 |"
    assert second == "| d | b | nan | -1.000 |"
    assert len(boards.completions_table(kept, rows=1).split("\n")) == 3
    markdown = pytest.importorskip("markdown").markdown(boards.completions_table(kept), extensions=["tables"])
    assert "<script" not in markdown and "<strong>" not in markdown and "<a " not in markdown
    assert markdown.count("<td>") == 8 and "**bold**" in markdown.replace("&#42;", "*")


def test_the_environment_may_name_another_folder(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    trainer = toy.make_trainer(tmp_path / "out", report_to="tensorboard", rollout_func=toy.canned(ANSWERS))
    trackers.connect(trainer)
    trainer.train()
    assert list((tmp_path / "elsewhere").iterdir()) and not (tmp_path / "out/tensorboard").exists()


# ------------------------------------------------------------ the setting
@pytest.mark.parametrize(
    ("value", "names"),
    [(None, []), ("none", []), (["none"], []), ([], []), ("tensorboard", ["tensorboard"]), ("mlflow", ["mlflow"])],
)
def test_values_of_report_to(value, names):
    if value == "mlflow":
        pytest.importorskip("mlflow")
    assert trackers_of(value) == names


@pytest.mark.parametrize("kind", [SFTStage, RewardStage, PPOStage, GRPOStage])
def test_no_tracker_is_on_by_default(kind):
    config = kind(output_dir="x", **COMMON)
    assert config.report_to == [] and config.trackio_static_space_id is False
    assert not getattr(config, "log_completions", False) and getattr(config, "num_completions_to_print", 0) == 0


@pytest.mark.parametrize("kind", [PPOStage, GRPOStage])
def test_a_tracker_brings_the_table_of_completions(kind, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert kind(output_dir="x", report_to="tensorboard", **COMMON).log_completions is True
    assert kind(output_dir="x", report_to=["tensorboard"], log_completions=False, **COMMON).log_completions is False


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_missing_package_is_one_sentence_with_the_command(tracker, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        SFTStage(output_dir="x", report_to=tracker, **COMMON)
    assert str(caught.value) == (f"report_to: {tracker} needs a package that is not installed: pip install {tracker}")


def test_a_misspelt_tracker_is_refused_with_the_real_ones():
    known = "none, tensorboard, trackio, wandb, mlflow, "
    with pytest.raises(UserError, match=f"no tracker 'tensorbord'; take one of {known}"):
        PPOStage(output_dir="x", report_to=["tensorbord"], **COMMON)


def test_without_a_tracker_nobody_listens_but_ourselves(tmp_path):
    trainer = toy.make_trainer(tmp_path, report_to=trackers_of("none"))
    trackers.connect(trainer)
    listening = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert not listening & set(INTEGRATION_TO_CALLBACK.values()) and len(listening) > 1
