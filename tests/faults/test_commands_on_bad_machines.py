"""merge, eval, sample, judge, sweep and compare where the disk is full, the folder may not be written, another copy
runs, or Ctrl-C comes in the middle: one sentence, an exit code that is not 0, nothing half-made left, nothing lost."""

import fcntl
import os
import signal

import pytest
import yaml
from catalogue import Case, prepare, write_rows
from front_door import ROOT, Done, tree
from test_bad_inputs_machine import LINUX, mounted

from pipeline.runs import claim
from pipeline.runs.folder import new_file

pytest_plugins = ["places"]
pytestmark = LINUX
EVAL = {"candidates": [{"base": "base"}, {"sft": "sft"}], "dataset": "prompts.jsonl", "use_cpu": True}
EVAL |= {"max_completion_length": 4, "eval_samples": 3, "sharpened": False}
OUTPUTS = {key: value for key, value in EVAL.items() if key != "candidates"} | {"candidates": [{"sft": "sft"}]}
SAMPLE = {"run": "sft", "dataset": "prompts.jsonl", "max_rows": 3, "max_completion_length": 4, "use_cpu": True}
SWEEP = {
    "stage": "ppo",
    "stage_config": "run.yaml",
    "measure": "score",
    "pruner": "none",
    "trials": 1,
    "space": {"kl_coef": {"choice": [1.0]}},
}
# command -> recipe, settings, the flag that says where the result goes
COMMANDS = {
    "merge": ("merge", {"run": "sft"}, "output"),
    "eval": ("eval", EVAL, "output_dir"),
    "outputs": ("eval", OUTPUTS, "outputs"),
    "sample": ("sample", SAMPLE, "output"),
    "judge": ("judge", {"samples": "samples.jsonl"}, "output_dir"),
    "sweep": ("sweep", SWEEP, "output_dir"),
}
# What drops root's right to write where nobody may: chown, dac_override and dac_read_search (capabilities(7)).
AS_ANYBODY = """
import ctypes, runpy, sys
libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
for i in range(3):
    sets[i] &= ~0b111 & 0xFFFFFFFF
assert libc.capset(header, sets) == 0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Stops in the middle of the work, and tells so.
STOPS_AT = """
import importlib, runpy, signal, sys
module, name = sys.argv[1].split(":")
def stop(*args, **kwargs):
    open("ready", "w").close()  # returns when the test has opened the other end
    signal.pause()
setattr(importlib.import_module(module), name, stop)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def command(place):
    """Arguments of Python for a command whose result goes to `to`."""
    prepare(place, Case("the stage of a sweep", (), "ppo"))
    write_rows(place / "samples.jsonl", [{"prompt": f"{i}", "before": "a", "after": "b"} for i in range(4)])

    def words(name: str, to: str) -> list[str]:
        recipe, settings, flag = COMMANDS[name]
        (place / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        return [str(ROOT / "recipes" / f"{recipe}.py"), "--config", f"{name}.yaml", f"--{flag}", to]

    return words


def error_of(done: Done) -> str:
    return Done(*done).error


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_full(warm, place, command, name):
    words = command(name, "disk/out")
    with mounted(place / "disk", "size=64k") as disk:
        (disk / "filler").write_bytes(b"." * os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize)
        message = error_of(warm.run(words, place))
        assert "disk/out cannot be written" in message and "give another" in message
        assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize(("name", "size"), [("merge", "40k"), ("eval", "12k"), ("sweep", "24k")])
def test_a_disk_that_fills_up(warm, place, command, name, size):
    words = command(name, "disk/out")
    with mounted(place / "disk", f"size={size}") as disk:
        message = error_of(warm.run(words, place))
        assert "make room" in message and list(disk.iterdir()) == []


def test_an_evaluation_outlives_a_page_that_cannot_be_written(warm, place, command):
    (place / "hours").mkdir()
    code = (
        "import sys, runpy; from pathlib import Path; from pipeline.runs.folder import RunFolder\n"
        "write = RunFolder.write_summary\n"
        "RunFolder.write_summary = lambda self, it: (write(self, it), (self.path / 'report.html').mkdir())\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = warm.run(["-c", code, *command("eval", "hours/eval")], place)
    assert done.returncode == 2 and "report.html is a folder" in done.stderr
    assert {"summary.json", "rows.jsonl", "table.md"} <= {path.name for path in (place / "hours/eval").iterdir()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_may_not_be_written(warm, place, command, name):
    words = command(name, "locked/out")
    (place / "locked").mkdir(mode=0o555)
    before = tree(place)
    message = error_of(warm.run(["-c", AS_ANYBODY, *words], place))
    assert "locked/out cannot be written (Permission denied)" in message and "give another" in message
    assert tree(place) == before


@pytest.mark.parametrize("name", ["merge", "eval", "outputs", "sample"])
def test_a_second_copy(warm, place, command, name):
    words, out = command(name, "out"), place / "out"
    if name in ("merge", "eval"):
        out.mkdir()
        assert claim.take(out)
        try:
            assert "output_dir out is in use, another run is writing to it" in error_of(warm.run(words, place))
            assert list(out.iterdir()) == []
        finally:
            os.close(claim._held.pop(out.resolve()).descriptor)
        return
    with new_file(out, "output") as write:
        assert "out is being made by another process" in error_of(warm.run(words, place))
        write("mine")
    assert "out exists and is never overwritten" in error_of(warm.run(words, place))
    assert out.read_text() == "mine" and not list(place.glob(".out*"))


def test_a_second_comparison(warm, place):
    (place / "mine").mkdir()
    (place / "mine/compare.yaml").write_text("contestants: [{name: a, script: ppo, config: ppo}]\nagainst: a\n")
    (place / "runs/mine/compare").mkdir(parents=True)
    with (place / "runs/mine/compare/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = warm.run([str(ROOT / "recipes/compare.py"), "mine"], place)
    assert error_of(done) == "another comparison is running in runs/mine/compare: wait for it"


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("merge", "pipeline.stages.merge:write_card"),
        ("eval", "pipeline.eval.stage:compare"),
        ("outputs", "pipeline.eval.stage:outputs"),
        ("sample", "pipeline.eval.sampling:texts_of"),
    ],
)
def test_ctrl_c_in_the_middle(warm, place, command, name, where):
    words = command(name, "out")
    (place / "sft/summary.json").write_text("{}")  # then merge writes a card
    os.mkfifo(place / "ready")
    before = tree(place)
    process = warm.start(["-c", STOPS_AT, where, *words], place)
    with (place / "ready").open():
        os.kill(process, signal.SIGINT)
    [done] = warm.wait(process)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line] == ["stopped"], done.stderr
    assert tree(place) == before


def test_two_processes_make_one_file_once(tmp_path):
    """The second comes between the first one's look and its claim."""
    path = tmp_path / "deep" / "out"
    with new_file(path, "output") as write:
        assert not path.exists()
        write("whole")
    assert path.read_text() == "whole" and [p.name for p in path.parent.iterdir()] == ["out"]
    with pytest.raises(KeyError), new_file(tmp_path / "other", "output"):
        raise KeyError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
