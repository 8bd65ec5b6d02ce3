"""Runs of both sides in processes of their own, and what they ran on."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from tests.tools.bench import environment, measure

QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}


def pythons(sides: Sequence[str], folder: Path | str | None = None) -> dict[str, Path]:
    """The interpreter of each side; a rival's environment, in `folder` or its own, is made when it is not there."""

    def python(side: str) -> Path:
        if side == "plumbline":
            return Path(sys.executable)
        rival = environment.RIVALS[side]
        return rival.python(Path(folder) if folder else rival.folder)

    return {side: python(side) for side in sides}


def alternate(
    pythons: dict[str, Path], flags: list[str], rounds: int, name: str, before: Callable[[], None] = lambda: None
) -> dict[str, list[dict]]:
    """`rounds` runs of each side, in turn and each round the other way round. `before` is called before each run."""
    found = {side: [] for side in pythons}
    for round_ in range(1, rounds + 1):
        for side in list(pythons)[:: 1 if round_ % 2 else -1]:
            before()
            found[side].append(run(pythons[side], f"{side}_ppo", [*flags, "--seed", str(round_)]))
            seconds = ", ".join(f"{s:.2f}" for s in found[side][-1]["seconds"])
            print(f"{name}, round {round_}, {side}: {seconds} s an update", flush=True)
    return found


def run(python: Path, module: str, flags: list[str]) -> dict:
    """The figures of one run in a process of its own.

    Raises:
        SystemExit: with the end of what it printed, when it fails.
    """
    command = [str(python), "-m", f"tests.tools.bench.{module}", *flags]
    done = subprocess.run(command, cwd=environment.ROOT, env=os.environ | QUIET, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise SystemExit(f"{tail}\nbench: this run failed: {' '.join(command[1:])}")
    return measure.heard(done.stdout)


def about(**more) -> dict:
    """When, where and of what state of the project."""
    git = ["git", "-C", str(environment.ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    return {"date": date.today().isoformat(), "commit": commit, "cpu": cpu(), "cores": os.cpu_count(), **more}


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def busy(seconds: float = 1.0) -> float:
    """Share of all cores that is at work now, while this process waits."""
    before = _ticks()
    time.sleep(seconds)
    work, idle = (after - start for after, start in zip(_ticks(), before, strict=True))
    return work / max(1, work + idle)


def _ticks() -> tuple[int, int]:
    """Working and idle time of all cores since the start of the machine; time stolen by others counts as work."""
    figures = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
    user, nice, system, idle, iowait, *rest = map(int, figures)
    return user + nice + system + sum(rest), idle + iowait
