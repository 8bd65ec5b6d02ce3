"""A Python that has the libraries imported and forks for each program that tests run.

Importing the stack takes longer than most of these programs. The fixture `warm` (conftest.py) is one such process for
all tests; it computes nothing itself, so that there are no threads to lose. What a program would read from its
environment while it imports it does not read again: tests of that start a Python of their own.
"""

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/support")))
SECONDS = 300  # a program that takes longer hangs
# What is not imported here a program imports by itself.
STACK = (
    *("pipeline.stages.sft", "pipeline.stages.reward_model", "pipeline.stages.ppo", "pipeline.stages.trl_stage"),
    *("pipeline.hub", "pipeline.judging.server", "pipeline.stages.merge", "pipeline.eval.stage", "pipeline.report"),
    *("rewards.learned", "rewards.overlap", "accelerate.commands.launch"),
)


class Done(NamedTuple):
    """How a program ended."""

    returncode: int  # negative: killed by that signal
    stdout: str
    stderr: str


class Warm:
    """Runs programs: `argv` is what stands after `python`, so a script, or `-m` and a module, or `-c` and code."""

    def __init__(self):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATH, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
        for name in ("HF_TOKEN", "RANK", "LOCAL_RANK", "WORLD_SIZE", "FORCE_COLOR"):
            env.pop(name, None)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, "-u", __file__], env=env, **pipes)
        self._said = tempfile.TemporaryDirectory()

    def start(self, argv: list[str], folder: Path, env=None, limits=None, presets=None, seconds=SECONDS) -> int:
        """The id of a process that runs `python argv` in `folder`.

        Args:
            env: variables. limits: name in `resource` -> number (RLIMIT_AS: bytes beyond those in use now).
            presets: `module:name` -> value, constants
                that a fresh process would have read from its environment.
            seconds: it is killed when it takes longer.
        """
        job = {"argv": list(map(str, argv)), "folder": str(folder), "env": env or {}, "said": self._said.name}
        [process] = self._ask(job | {"limits": limits or {}, "presets": presets or {}, "seconds": seconds})
        return process

    def wait(self, *processes: int) -> list[Done]:
        """How they ended. When one of several fails, the others are killed, as torchrun does."""
        codes = map(os.waitstatus_to_exitcode, self._ask({"wait": processes}))
        texts = (
            [Path(self._said.name, f"{p}.{x}").read_text("utf-8", "replace") for x in ("out", "err")]
            for p in processes
        )
        return [Done(code, *said) for code, said in zip(codes, texts, strict=True)]

    def run(self, argv: list[str], folder: Path, **more) -> Done:
        [done] = self.wait(self.start(argv, folder, **more))
        return done

    def ranks(self, count: int, argv: list[str], folder: Path, env=None) -> list[Done]:
        """The program in `count` CPU processes that know of each other, as torchrun and Accelerate start them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common |= {"ACCELERATE_USE_CPU": "true"} | (env or {})
        own = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
        return self.wait(*[self.start(argv, folder, common | rank) for rank in own])

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(SECONDS)
        self._said.cleanup()

    def _ask(self, question: dict) -> list[int]:
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


# ------------------------------------------------------------ the process that forks
def _serve() -> dict | None:
    """Answers until standard input ends; in a forked process it returns that process's job."""
    for name in STACK:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # `gc.collect()` in a fork would walk through, and copy, the pages of all that was imported
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            print(json.dumps(_wait(question["wait"])))
        elif process := os.fork():
            print(json.dumps([process]))
        else:
            return question
    return None


def _wait(processes: list[int]) -> list[int]:
    ended: dict[int, int] = {}
    while len(ended) < len(processes):
        for process in [p for p in processes if p not in ended]:
            found, status = os.waitpid(process, os.WNOHANG if len(processes) > 1 else 0)
            if found:
                ended[process] = status
        if any(ended.values()):
            for process in [p for p in processes if p not in ended]:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.005)
    return [ended[process] for process in processes]


def _become(job: dict) -> list[str]:
    """Makes this forked process what a fresh one would be; what it is to run."""
    said = Path(job["said"], str(os.getpid()))
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, f"{said}.out", 577), (2, f"{said}.err", 577)):
        os.dup2(os.open(path, mode, 0o644), number)  # 577: write, create, truncate
    os.chdir(job["folder"])
    os.environ |= job["env"]
    sys.path[1:1] = os.environ["PYTHONPATH"].split(os.pathsep)
    for name, value in job["presets"].items():
        module, _, attribute = name.partition(":")
        setattr(importlib.import_module(module), attribute, value)
    for name, value in job["limits"].items():
        value += _address_space() if name == "RLIMIT_AS" else 0
        resource.setrlimit(getattr(resource, name), (value, value))
    signal.alarm(job["seconds"])
    return job["argv"]


def _address_space() -> int:
    """Bytes of this process; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _run(argv: list[str]) -> int:
    """What the interpreter does with its arguments, its exit code included."""
    what, *rest = argv
    try:
        if what == "-c":
            sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif what == "-m":
            sys.argv, sys.path[0] = rest, os.getcwd()
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = argv, str(Path(what).resolve().parent)
            runpy.run_path(what, run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
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
