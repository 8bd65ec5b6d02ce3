"""The command `plumbline`: every stage of the Makefile, the recipes' own help, errors in one sentence."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT

from pipeline.errors import UserError
from pipeline.runs import stopping
from pipeline.safety import commands
from pipeline.watching.terminal import next_step
from plumbline.commands import COMMANDS, usage
from plumbline.launching import _hardware_file, _launcher_flags, recipes
from plumbline.main import main

# Targets of the Makefile that need the clone.
HOUSE = "help venv screenshots test test-all test-cov test-deepspeed test-latest test-trackers test-vllm".split()
HOUSE += "mutants torture soak fuzz audit bench bench-gpu gpu-check docs wheel lint format clean".split()


def test_every_stage_of_the_makefile_is_a_command():
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.search(r"^\.PHONY: (help .*)$", text, re.MULTILINE)[1].split())
    assert {"sft", "ppo", "a2c", "samples", "push", *HOUSE} <= targets
    assert targets - set(HOUSE) <= set(COMMANDS)


def test_every_script_has_a_command_and_every_command_something_to_run():
    scripts = {path.name for path in (ROOT / "recipes").glob("*.py")} - {"launch.py"}
    assert scripts == {command.runs for command in COMMANDS.values() if command.runs.endswith(".py")}
    for command in COMMANDS.values():
        module, _, function = command.runs.partition(":")
        if command.runs.endswith(".py"):
            assert (recipes() / command.runs).is_file()
        elif function:
            source = Path(importlib.util.find_spec(module).origin).read_text("utf-8")
            assert function in {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        else:
            assert importlib.util.find_spec(module) is not None


def test_what_is_not_a_stage_starts_without_torch(tmp_path):
    code = (
        "import sys\nfrom plumbline.main import main\n"
        "for words in ('--help', '--version', 'recipes', 'init mine', 'nothing', 'ppo --nproc x'):\n"
        "    print(main(words.split()))\n"
        "heavy = {'torch', 'numpy', 'transformers', 'trl', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\d$", done.stdout, re.MULTILINE) == ["0", "0", "0", "0", "2", "2"]
    assert done.stderr.count("error: ") == 2


def test_the_help_is_whole_and_fits_a_terminal():
    lines = usage().splitlines()
    assert all(len(line) <= 105 for line in lines)
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


@pytest.mark.parametrize("name", ["ppo", "eval", "push"])
def test_the_help_of_a_stage_is_that_of_its_script(name, warm, tmp_path):
    ours = warm.run(["-m", "plumbline", name, "--help"], tmp_path)
    theirs = warm.run([ROOT / f"recipes/{name}.py", "--help"], tmp_path)
    assert ours.returncode == theirs.returncode == 0
    first, rest = ours.stdout.split("\n", 1)
    assert rest == theirs.stdout.split("\n", 1)[1] and "--output_dir" in rest or name == "push"
    assert theirs.stdout.startswith(f"usage: {name}.py [--config")
    assert "plumbline" in first and first.endswith("[--help | --help-all]")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["pp"], "there is no command pp, did you mean ppo? (plumbline --help lists them)"),
        (["init"], "the following arguments are required: folder (plumbline init --help)"),
        (["init", "x", "--lik", "hh"], "unrecognized arguments: --lik hh (plumbline init --help)"),
        (["sft", "--nproc"], "--nproc wants a value after it"),
        (["sft", "--nproc", "0"], "--nproc is 0: give a whole number from 1 up"),
        (
            ["sft", "--hardware=gpux"],
            "--hardware gpux: there is no such file; give the path of an accelerate file, or cpu,",
        ),
        (
            ["doctor", "nowhere"],
            "nowhere: there is no such recipe; give a folder of YAMLs (plumbline init writes one)",
        ),
        (["completion", "fish"], "argument shell: invalid choice: 'fish' (choose from 'bash', 'zsh', 'tcsh')"),
    ],
)
def test_errors_are_one_sentence(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = list(sys.argv)
    assert main(argv) == 2
    assert sys.argv == before  # hints of what runs later in this process are not named after this command
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.out == ""
    assert says.replace("'", "") in said.err.replace("'", "")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv", [["sft", "--config", "no.yaml"], ["ppo", "--learning_rat", "1"], ["seeds", "no", "0"]]
)
def test_a_stages_errors_are_its_own(argv, warm, tmp_path):
    done = warm.run(["-m", "plumbline", *argv], tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: "]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["report"], "error: the following arguments are required: RUN (plumbline report --help)"),
        (["check"], "error: the following arguments are required: recipe (plumbline check --help)"),
        (["chat"], "error: the following arguments are required: run (plumbline chat --help)"),
        (["scale", "--row", "8"], "error: unrecognized arguments: --row (plumbline scale --help)"),
        (["seeds"], "error: the following arguments are required: recipe, seeds (plumbline seeds --help)"),
        (["ppo"], "error: nothing is set: give --config FILE.yaml, or settings ("),
    ],
)
def test_what_is_typed_without_what_it_takes_is_refused_in_one_sentence(argv, says, warm, tmp_path):
    done = warm.run(["-m", "plumbline", *argv], tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1


def test_launcher_flags_are_taken_out_wherever_they_stand():
    assert _launcher_flags(["--config", "a.yaml"]) == (1, None, ["--config", "a.yaml"])
    assert _launcher_flags(["--nproc=3", "--config", "a", "--hardware", "gpus"]) == (3, "gpus", ["--config", "a"])
    assert _launcher_flags(["--seed", "1", "--hardware", "x.yaml"]) == (
        0,
        "x.yaml",
        ["--seed", "1"],
    )  # as the file says
    with pytest.raises(UserError, match="--nproc is -1"):
        _launcher_flags(["--nproc", "-1"])


def test_an_accelerate_file_is_found_by_name_or_path(tmp_path):
    assert _hardware_file("gpus") == recipes() / "accelerate/gpus.yaml"
    (tmp_path / "ours.yaml").touch()
    assert _hardware_file(str(tmp_path / "ours.yaml")) == tmp_path / "ours.yaml"


# ------------------------------------------------------------ hints
def test_hints_name_what_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/ppo.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["plumbline sft", "--config", "mine/sft.yaml", "--run_name", "a b"])
    assert stopping.farewell() == "stopped. To go on: plumbline sft --config mine/sft.yaml --run_name 'a b' --resume"
    assert commands.command("merge") == "plumbline merge"
    assert next_step("reward", "runs/mine/sft") == "plumbline ppo --config mine/ppo.yaml"  # there is no reward.yaml
    (tmp_path / "mine/reward.yaml").touch()
    assert next_step("reward", "runs/mine/sft") == "plumbline reward --config mine/reward.yaml"
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py"])
    monkeypatch.setenv(commands.TYPED, "plumbline sft --nproc 2 --resume")  # in a process that Accelerate has started
    assert stopping.command() == "plumbline sft --nproc 2 --resume"
    assert commands.following("ppo") == "plumbline ppo --config ..."


def test_hints_in_a_clone_are_those_of_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", "--config", "recipes/hh/sft.yaml"])
    assert commands.command("merge") == "python recipes/merge.py" and commands.following("ppo") is None
    monkeypatch.setattr(sys, "argv", ["plumbline sft", "--config=recipes/hh/sft.yaml"])
    assert commands.following("reward") == "plumbline reward --config recipes/hh/reward.yaml"


# ------------------------------------------------------------ several processes
@pytest.mark.slow
def test_two_processes_train_one_adapter(tiny_model_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a\\n", "completion": "b"}\n' * 8)
    flags = ["--model_name_or_path", str(tiny_model_folder), "--dataset", "rows.jsonl", "--output_dir", "out"]
    flags += ["--max_steps", "1", "--per_device_train_batch_size", "1", "--report_to", "none"]
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "plumbline", "sft", "--nproc", "2", *flags],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
    assert "Next: plumbline reward --config ..." in done.stdout
    assert ", 2 processes" in json.loads((tmp_path / "out/summary.json").read_text())["hardware"]
