"""Recipes as a person launches them, a real process for each case: real exit code, real standard error, real limits.

Importing the stack takes seconds, so one process does it once and forks for each case (`python front_door.py` is that
process; it computes nothing itself, so that there are no threads to lose). `FrontDoor` is what tests use.
"""

import atexit
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 600  # characters of an error line; a longer one is not read
SECONDS = 120  # a case that takes longer hangs
STACK = (
    *(
        "pipeline.stages.sft",
        "pipeline.stages.reward_model",
        "pipeline.stages.ppo",
        "pipeline.stages.trl_stage",
        "pipeline.hub",
    ),
    *("pipeline.judging.server", "pipeline.stages.merge", "pipeline.eval.stage", "rewards.learned", "rewards.overlap"),
)


class Done(NamedTuple):
    """How a recipe ended."""

    code: int  # exit code; negative: killed by that signal
    out: str
    err: str

    @property
    def error(self) -> str:
        """What stands after `error: `; the contract of every bad input is checked on the way."""
        assert "Traceback" not in self.out + self.err, self.out + self.err
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert self.code == 2 and len(errors) == 1 and errors == lines[-1:], f"{self}"  # above it are warnings at most
        assert len(errors[0]) <= LONGEST, f"{len(errors[0])} characters: {errors[0]}"
        return errors[0].removeprefix("error: ")


class FrontDoor:
    """Starts recipes in `folder`."""

    def __init__(self):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
        for name in ("HF_TOKEN", "RANK", "LOCAL_RANK", "WORLD_SIZE", "FORCE_COLOR"):
            env.pop(name, None)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, "-u", __file__], env=env, **pipes)

    def start(self, recipe: str, argv: list[str], folder: Path, env=None, limits=None, presets=None) -> int:
        """The id of a process that runs `recipes/<recipe>.py argv` in `folder`.

        Args:
            env: variables. limits: name in `resource` -> number (RLIMIT_AS: bytes beyond those in use now).
            presets: `module:name` -> value, constants
                that a fresh process would have read from its environment.
        """
        job = {"recipe": recipe, "argv": argv, "folder": str(folder), "env": env or {}}
        return self._ask(job | {"limits": limits or {}, "presets": presets or {}, "said": str(_said(folder))})

    def wait(self, process: int, folder: Path) -> Done:
        """How it ended."""
        code = os.waitstatus_to_exitcode(self._ask({"wait": process}))
        out, err = ((_said(folder) / f"{process}.{name}").read_text("utf-8", "replace") for name in ("out", "err"))
        return Done(code, out, err)

    def __call__(self, recipe: str, argv: list[str], folder: Path, **more) -> Done:
        return self.wait(self.start(recipe, argv, folder, **more), folder)

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(SECONDS)

    def _ask(self, question: dict) -> int:
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _said(folder: Path) -> Path:
    """Where a process's output goes: beside its folder, which is compared before and after."""
    said = folder.with_name(folder.name + ".said")
    said.mkdir(exist_ok=True)
    return said


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`; the content of files."""
    paths = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


# ------------------------------------------------------------ the process that forks
def _serve() -> dict | None:
    """Answers until standard input ends; in a forked process it returns that process's job."""
    for name in STACK:
        importlib.import_module(name)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            print(os.waitpid(question["wait"], 0)[1])
        elif process := os.fork():
            print(process)
        else:
            return question
    return None


def _become(job: dict) -> str:
    """Makes this forked process what a fresh one would be."""
    said = Path(job["said"], str(os.getpid()))
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, f"{said}.out", 577), (2, f"{said}.err", 577)):
        os.dup2(os.open(path, mode, 0o644), number)  # 577: write, create, truncate
    os.chdir(job["folder"])
    os.environ |= job["env"]
    for name, value in job["presets"].items():
        module, _, attribute = name.partition(":")
        setattr(importlib.import_module(module), attribute, value)
    for name, value in job["limits"].items():
        value += _address_space() if name == "RLIMIT_AS" else 0
        resource.setrlimit(getattr(resource, name), (value, value))
    recipe = str(ROOT / "recipes" / f"{job['recipe']}.py")
    sys.argv, sys.path[0] = [recipe, *job["argv"]], str(ROOT / "recipes")
    signal.alarm(SECONDS)
    return recipe


def _address_space() -> int:
    """Bytes of this process; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _run(recipe: str) -> int:
    """What the interpreter does with a script, its exit code included."""
    try:
        runpy.run_path(recipe, run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    if (asked := _serve()) is not None:
        code = _run(_become(asked))
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking the interpreter down in order takes two seconds
    os._exit(0)
