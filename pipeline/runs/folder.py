"""The output folder of a stage: settings, metrics and summary, and the promise that nothing is overwritten."""

import dataclasses
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback

from pipeline import __version__
from pipeline.errors import UserError
from pipeline.runs import claim
from pipeline.safety import shapes
from pipeline.safety.console import from_main, is_main
from pipeline.safety.reading import read_lines
from pipeline.safety.redaction import is_secret

CONFIG, METRICS, SUMMARY, HELDOUT = "config.yaml", "metrics.jsonl", "summary.json", "heldout.jsonl"
RESUMED = "resumed.jsonl"  # a row each time that the run went on: from where, and what was changed
UNFINISHED = ".unfinished"  # lies in the folder of a stage until it has come to its end
KEPT_LOGS = 1000  # rows of a trainer's `state.log_history`
_PROBE = ".probe-"
PACKAGES = ("torch", "trl", "transformers", "peft", "accelerate", "datasets")
# Where this process ran, not what was asked for; and what was asked for this time alone.
MACHINE = ("resume", "local_rank", "ddp_backend", "distributed_state", "deepspeed_plugin", "logging_dir")


class RunFolder:
    """One stage's output folder. Only rank 0 writes; every method may be called on all ranks."""

    checkpoint: Path | None = None  # the one that the run goes on from (pipeline/runs/resume.py)
    finished = False  # the run had come to its end before
    is_stage = False  # it can be gone on with: it is marked until it is finished
    resumed: dict[str, Any] | None = None  # how it goes on, for resumed.jsonl
    inputs: dict[str, str] = {}  # fingerprints of what it is made from

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path | None, resume: bool = False) -> "RunFolder":
        """Makes the folder and claims it for this run (see pipeline/runs/claim.py).

        Raises:
            UserError: there is something in it already (unless `resume`), another run is writing to it, or nobody can.
        """
        if not path:
            raise UserError("output_dir is not set: name the folder for the results, e.g. --output_dir runs/mine/sft")
        folder = cls(path)
        # Only rank 0 looks, otherwise a slower rank would find the folder that rank 0 has just filled.
        problem = from_main(folder._make(resume) if is_main() else None)
        if problem:
            raise UserError(problem)
        return folder

    def _make(self, resume: bool) -> str | None:
        if self.path.exists() and not self.path.is_dir():
            return f"output_dir {self.path} is a file, not a folder: give another --output_dir"
        try:
            made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            if not claim.take(self.path, made):
                return (
                    f"output_dir {self.path} is in use, another run is writing to it: wait for its end, or give "
                    "another --output_dir"
                )
            if not resume and self.is_used():
                go_on = ", or go on with it: --resume" if (self.path / UNFINISHED).exists() else ""
                return (
                    f"output_dir {self.path} already holds results and is never overwritten: "
                    f"give another --output_dir, or remove or rename {self.path}{go_on}"
                )
            probe = self.path / f"{_PROBE}{os.getpid()}"
            try:
                probe.write_bytes(b"." * 4096)  # a full disk takes the name, but not the content
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            return f"output_dir {self.path} cannot be written ({error.strerror}): give another --output_dir"
        return None

    def is_used(self) -> bool:
        """Whether there is anything in the folder."""
        return self.path.is_dir() and any(not path.name.startswith(_PROBE) for path in self.path.iterdir())

    def write_config(self, *settings: Any) -> None:
        """Writes `config.yaml`: all settings as resolved, the seed among them, and the package versions.

        The file can be given to `--config` again. Access tokens are never written.
        """
        if not is_main():
            return
        if self.is_stage:
            (self.path / UNFINISHED).touch()
        merged: dict[str, Any] = {}
        for item in settings:
            for key, value in settings_of(item).items():
                merged.setdefault(key, value)
        merged["versions"] = versions()
        text = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)
        write_aside(self.path / CONFIG, text)
        if self.resumed is not None:
            append_line(self.path / RESUMED, self.resumed)

    def metrics_callback(self) -> TrainerCallback:
        """A callback that appends each log of a `Trainer` to `metrics.jsonl`."""
        return MetricsCallback(self.path / METRICS, silent=self.checkpoint is not None)

    def finish(self) -> None:
        """The run has come to its end: `--resume` has nothing to do any more."""
        if is_main():
            (self.path / UNFINISHED).unlink(missing_ok=True)

    def read_summary(self) -> dict[str, Any]:
        """What `write_summary` wrote."""
        return json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes `summary.json`, aside first and then renamed, so that a reader never sees half a file."""
        if is_main():
            write_aside(self.path / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


class MetricsCallback(claim.Trained):
    """Appends `{"step": …, "epoch": …, …}` to a JSON-lines file at each log, on the main process only.

    Args: silent: until training begins; what is measured before it stands in the file of a resumed run already.
    """

    def __init__(self, path: Path, silent: bool = False):
        super().__init__(path.parent)
        self.path, self.silent = path, silent

    def on_train_begin(self, args, state, control, **kwargs):
        self.silent = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        shorten(state.log_history)
        if not state.is_world_process_zero or not logs or self.silent:
            return
        append_line(self.path, {"step": state.global_step, "epoch": state.epoch, **logs})


def shorten(log_history: list[dict[str, Any]]) -> None:
    """Leaves the last `KEPT_LOGS` rows, and before them the first with an `eval_loss`, which a summary reads.

    Each takes kilobytes in memory and in every checkpoint; `metrics.jsonl` has them all.
    """
    if len(log_history) > KEPT_LOGS:
        first = next((row for row in log_history if "eval_loss" in row), None)
        last = log_history[-KEPT_LOGS:]
        log_history[:] = last if first is None or first in last else [first, *last]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; `path` is the file or its run folder. A last line cut by a kill is left out."""
    path = Path(path)
    path = path / METRICS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a run folder with a {METRICS} in it")
    return read_lines(path, cut=True)


def read_heldout(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's `heldout.jsonl` (see pipeline/exam/exam.py); none when there is no such file."""
    path = Path(folder, HELDOUT)
    return read_lines(path, shapes.EXAM, cut=True) if path.is_file() else []


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide the result, and the number of threads,
    by which the last bits differ too."""
    found = {"plumbline": __version__, "python": platform.python_version(), "threads": str(torch.get_num_threads())}
    return found | {name: metadata.version(name) for name in PACKAGES}


def settings_of(item: Any) -> dict[str, Any]:
    """The settings of a dataclass as plain YAML values, without secrets and without what is at its default None."""
    found = {}
    for field in dataclasses.fields(item):
        value = getattr(item, field.name, None)
        if (
            not field.init
            or is_secret(field.name)
            or field.name in MACHINE
            or (value is None and field.default is None)
        ):
            continue
        found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if not is_secret(key)}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value)


def write_aside(path: Path, text: str) -> None:
    """Writes the file aside first and then renames it, so that a reader never sees half of it."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_file(path: Path, key: str) -> Iterator[Callable[[str], None]]:
    """A file that must not be there yet, claimed before the work for it begins. The block is given a function that
    writes it, whole or not at all.

    Args: key: the setting that names it, for errors.

    Raises:
        UserError: it is there, another process is making it, or nobody can write there.
    """
    aside, written = path.with_name(f".{path.name}.tmp"), False
    there = UserError(f"{key} {path} exists and is never overwritten: give another name, or remove it")
    if path.exists():
        raise there
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = aside.open("ab", buffering=0)
    except OSError as error:
        raise UserError(f"{key} {path} cannot be written ({error.strerror}): give another place") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{key} {path} is being made by another process: wait for its end, or name another"
            ) from None
        try:
            if path.exists():  # since just now
                raise there
            file.truncate(0)
            try:
                file.write(b"." * 4096)  # a full disk takes the name, but not the content
            except OSError as error:
                raise UserError(f"{key} {path} cannot be written ({error.strerror}): give another place") from None

            def write(text: str) -> None:
                nonlocal written
                aside.write_text(text, encoding="utf-8")
                os.replace(aside, path)
                written = True

            yield write
        finally:
            if not written:
                aside.unlink(missing_ok=True)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Adds a row to a JSON-lines file in one write, so that a kill does not leave half a line."""
    line = json.dumps(row, ensure_ascii=False, default=float) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())
