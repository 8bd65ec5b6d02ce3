"""What arrives in each tracker, read back by its own means: curves of the exam, pictures of tokens, completions."""

import csv
import io
import json
import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import toy
from PIL import Image
from short_runs import prompts_file, run_ppo
from tracked_run import REWARDS, SECRET, run_tracked
from wandb_file import BLOCK, FIRST, FULL, LAST, chunks, history

from pipeline.config import trackers_of
from pipeline.report.token_picture import token_pictures
from pipeline.runs.folder import read_heldout
from pipeline.watching import boards, trackers

EXAM = ("exam/kl", "exam/score", "exam/rewards/keyword", "exam/length", "exam/finished")


def wanted(output: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of the exam as `heldout.jsonl` has them: step and number."""
    rows = read_heldout(output)
    assert len(rows) == 3  # before, after the first update, after the second
    names = ("kl", "score", "length", "finished")
    found = {f"exam/{name}": [(row["step"], row[name]) for row in rows] for name in names}
    return found | {"exam/rewards/keyword": [(row["step"], row["rewards"]["keyword"]) for row in rows]}


def assert_equal(found: list[tuple], points: list[tuple[int, float]], name: str) -> None:
    assert [step for step, _ in found] == [step for step, _ in points] == [0, 2, 4], name
    assert [x for _, x in found] == pytest.approx([x for _, x in points], rel=1e-6), name


def kept_completions(output: Path) -> dict[int, pandas.DataFrame]:
    """TRL's own files by step."""
    return {int(p.stem.split("_")[1]): pandas.read_parquet(p) for p in (output / "completions").iterdir()}


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLFLOW", "TRACKIO"))}
    return kept | {"HOME": str(folder), "OMP_NUM_THREADS": "1"} | more


def holding(folder: Path, secret: str) -> list[str]:
    """Files below a folder in which the secret stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if secret.encode() in path.read_bytes()]


def rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


# ------------------------------------------------------------ TensorBoard
@pytest.fixture(scope="module")
def board(tmp_path_factory, tiny_model_folder):
    """A run of two updates, and what TensorBoard itself reads of it."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path_factory.mktemp("board")
    settings = {"total_episodes": 8, "report_to": "tensorboard", "hub_token": SECRET}
    run_ppo(folder / "ppo", tiny_model_folder, prompts_file(folder), REWARDS, eval_every=1, **settings)
    sizes = {"scalars": 0, "tensors": 0, "images": 0}
    read = event_accumulator.EventAccumulator(str(folder / "ppo/tensorboard"), size_guidance=sizes)
    return folder / "ppo", read.Reload()


def test_tensorboard_has_the_curves_of_the_exam_in_one_file(board):
    output, read = board
    curves = wanted(output)
    assert {name for name in read.Tags()["scalars"] if name.startswith("exam/")} == set(curves) == set(EXAM)
    for name, points in curves.items():
        found = [(event.step, event.value) for event in read.Scalars(name)]
        assert_equal(found, points, name)
    assert len(list((output / "tensorboard").iterdir())) == 1


def test_tensorboard_has_the_pictures_of_the_tokens_pixel_by_pixel(board):
    output, read = board
    pictures = token_pictures(output)
    assert set(read.Tags()["images"]) == set(pictures) == {"tokens/rewards", "tokens/advantages"}
    for name, picture in pictures.items():
        [event] = read.Images(name)
        assert event.step == 4
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), picture)


def test_tensorboard_has_no_secret(board):
    output, _ = board
    assert holding(output, SECRET) == []


def test_no_pictures_without_completions(tmp_path, tiny_model_folder, monkeypatch):
    made = []
    monkeypatch.setattr(boards.TensorBoard, "pictures", lambda self, found, step: made.append(found))
    settings = {"total_episodes": 4, "report_to": "tensorboard", "log_completions": False}
    run_ppo(tmp_path / "ppo", tiny_model_folder, prompts_file(tmp_path), REWARDS, eval_every=None, **settings)
    assert (tmp_path / "ppo/tokens.jsonl").is_file() and made == []


# ------------------------------------------------------------ what all have in common
class Shelf(boards.Board):
    """A tracker that keeps what it gets."""

    def __init__(self, trainer, callback):
        super().__init__(trainer, callback)
        self.got, self.broken = [], False

    def figures(self, found, step):
        if self.broken:
            raise ConnectionError(f"no way to it with {SECRET}")
        self.got.append((step, found["exam/kl"]))


def exams(folder: Path, *steps: int) -> None:
    with (folder / "heldout.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "kl": step / 10}) + "\n" for step in steps)


def test_each_exam_is_sent_once_and_a_resumed_run_sends_only_the_new_ones(tmp_path):
    trainer = toy.make_trainer(tmp_path)
    shelf = Shelf(trainer, None)
    to_boards = trackers.ToBoards(trainer, [shelf])
    exams(tmp_path, 0, 2)
    to_boards.on_train_begin(None, trainer.state, None)
    to_boards.on_step_end(None, trainer.state, None)
    exams(tmp_path, 4)
    to_boards.on_step_end(None, trainer.state, None)
    assert shelf.got == [(0, 0.0), (2, 0.2), (4, 0.4)]

    resumed = trackers.ToBoards(trainer, [again := Shelf(trainer, None)])
    trainer.state.global_step = 2
    resumed.on_train_begin(None, trainer.state, None)
    assert again.got == [(4, 0.4)]


def test_a_tracker_that_is_gone_at_the_end_costs_a_line_and_not_the_run(tmp_path, capsys):
    trainer = toy.make_trainer(tmp_path)
    shelf = Shelf(trainer, None)
    trainer.add_callback(trackers.ToBoards(trainer, [shelf]))
    exams(tmp_path, 0)
    shelf.broken = True
    trackers.finish(trainer)
    said = capsys.readouterr().out
    assert "a tracker did not take the last exam or pictures: no way to it with ***" in said


def test_the_end_of_the_training_is_held_back_until_it_is_closed():
    class Callback:
        ended = 0

        def on_train_end(self, args, **kwargs):
            self.ended += args

    held = boards.Board(None, callback := Callback())
    held.hold()
    callback.on_train_end(3, model=None)
    assert callback.ended == 0
    held.close()
    held.close()
    assert callback.ended == 3


def test_the_command_line_is_whole_again_afterwards(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ppo.py", "--hub_token", "opensesame", "--seed=3", f"--own={SECRET}"])
    with boards.secrets_off_the_command_line():
        assert sys.argv == ["ppo.py", "--hub_token", "***", "--seed=3", "--own=***"]
    assert sys.argv[2] == "opensesame"


def test_mlflow_reports_nothing_home_unless_it_was_asked_to(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    trackers_of("tensorboard")
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
    trackers_of("mlflow")
    assert os.environ.pop("MLFLOW_DISABLE_TELEMETRY") == "true"


def test_completions_as_csv_are_a_row_each_whatever_is_in_them():
    nasty = 'a,b "c"\n=1+1 \x1b[2J'
    kept = {"prompt": [[{"role": "user", "content": "p"}]], "completion": [nasty], "rewards": {"r,1": [0.5]}}
    rows = list(csv.reader(io.StringIO(boards.completions_csv(kept | {"advantages": [-1.0]}))))
    assert rows == [["prompt", "completion", "r,1", "advantage"], ["p", 'a,b "c"\n=1+1 \\x1b[2J', "0.5", "-1.0"]]


# ------------------------------------------------------------ the others, where they are installed
@pytest.mark.slow
def test_mlflow_has_one_finished_run_with_everything(tmp_path, tiny_model_folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    output = run_tracked("mlflow", tiny_model_folder, tmp_path, environment(tmp_path))
    monkeypatch.chdir(tmp_path)  # where it keeps files, too
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED" and run.data.params["hub_token"] == "<HUB_TOKEN>"
    for name, points in wanted(output).items():
        found = [(x.step, x.value) for x in client.get_metric_history(run.info.run_id, name)]
        assert_equal(found, points, name)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 2
    for step, frame in kept_completions(output).items():
        text = Path(client.download_artifacts(run.info.run_id, f"completions/completions_{step:05d}.csv")).read_text()
        table = pandas.read_csv(io.StringIO(text))
        assert list(table.columns) == ["prompt", "completion", "keyword", "advantage"]
        assert table["keyword"].tolist() == pytest.approx(frame["keyword"].tolist())
    assert len(kept_completions(output)) == 2
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images") if item.path.endswith(".png")]
    for name, picture in token_pictures(output).items():
        [path] = [path for path in images if name.partition("/")[2] in path]
        assert np.array_equal(rgb(Path(client.download_artifacts(run.info.run_id, path))), picture)
    assert holding(tmp_path, SECRET) == []


@pytest.mark.slow
def test_trackio_has_one_run_with_everything_on_this_machine(tmp_path, tiny_model_folder):
    pytest.importorskip("trackio")
    place = tmp_path / "trackio"
    output = run_tracked("trackio", tiny_model_folder, tmp_path, environment(tmp_path, TRACKIO_DIR=str(place)))
    [database] = place.glob("*.db")
    with sqlite3.connect(database) as connection:
        found = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, _ in found}) == 1
    logged = [json.loads(text) for _, text in found]
    for name, points in wanted(output).items():
        assert_equal([(row[boards.AXIS], row[name]) for row in logged if name in row], points, name)
    tables = [row["completions"]["_value"] for row in logged if "completions" in row]
    assert [len(table) for table in tables] == [4, 4, 4]  # TRL sends the last one again with the last log
    for name, picture in token_pictures(output).items():
        [shown] = [row[name] for row in logged if name in row]
        assert np.array_equal(rgb(place / "media" / shown["file_path"]), picture)
    assert holding(tmp_path, SECRET) == []


@pytest.mark.slow
def test_wandb_has_one_run_with_everything_offline(tmp_path, tiny_model_folder):
    pytest.importorskip("wandb")
    quiet = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    output = run_tracked("wandb", tiny_model_folder, tmp_path, environment(tmp_path, **quiet))
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    [log] = run.glob("*.wandb")
    logged = history(log)
    for name, points in wanted(output).items():
        assert_equal([(row[boards.AXIS], row[name]) for row in logged if name in row], points, name)
    tables = sorted(run.glob("files/media/table/completions*.json"))
    assert len(tables) == 3  # TRL sends the last one again with the last log
    for table in tables:
        content = json.loads(table.read_text())
        assert content["columns"] == ["step", "prompt", "completion", "keyword", "advantage"]
        assert len(content["data"]) == 4
    for name, picture in token_pictures(output).items():
        [shown] = [row[name] for row in logged if name in row]
        assert np.array_equal(rgb(run / "files" / shown["path"]), picture)
    assert holding(tmp_path, SECRET) == []


def test_the_reader_of_wandb_files_puts_records_together_over_blocks():
    def chunk(kind: int, content: bytes) -> bytes:
        return bytes(4) + len(content).to_bytes(2, "little") + bytes([kind]) + content

    first = b"x" * (BLOCK - 7 - 7 - 3)  # header, its own head, and three bytes that no chunk fits in
    data = b":W&B\xe1\xbe\x00" + chunk(FULL, first) + bytes(3) + chunk(FIRST, b"ab") + chunk(LAST, b"c")
    assert list(chunks(data)) == [(FULL, first), (FIRST, b"ab"), (LAST, b"c")]
