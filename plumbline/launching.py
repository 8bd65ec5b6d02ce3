"""Runs what a command stands for, here or in several processes."""

import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from pipeline.errors import UserError
from pipeline.safety.commands import TYPED
from plumbline.commands import Command


def recipes() -> Path:
    """The folder with the recipes' scripts and YAMLs: in the wheel inside this package, in a clone beside it."""
    here = Path(__file__).resolve().parent
    inside = here / "recipes"
    return inside if inside.is_dir() else here.parent / "recipes"


def run(name: str, command: Command, arguments: list[str]) -> int | None:
    """Runs `plumbline <name> <arguments>` in this process, or replaces it by one that starts several.

    `sys.argv[0]` becomes `plumbline <name>`: help and hints name the command as it was typed
    (pipeline/runs/stopping.py).

    Raises:
        UserError: `--nproc` or `--hardware` does not fit.
    """
    if command.launched:
        given = arguments
        processes, hardware, arguments = _launcher_flags(given)
        if processes != 1 or hardware:
            file = _hardware_file(hardware or "cpu2")
            os.environ[TYPED] = shlex.join(["plumbline", name, *given])
            _start_several(recipes() / command.runs, processes, file, arguments)
    before, sys.argv = sys.argv, [f"plumbline {name}", *arguments]
    try:
        return _run_here(command, arguments)
    finally:
        sys.argv = before  # whoever calls `main` from Python goes on


def _run_here(command: Command, arguments: list[str]) -> int | None:
    if command.runs.endswith(".py"):
        run_script(recipes() / command.runs)
    elif ":" in command.runs:
        module, _, function = command.runs.partition(":")
        code: int | None = getattr(__import__(module, fromlist=[function]), function)(arguments)
        return code
    else:
        runpy.run_module(command.runs, run_name="__main__")
    return None


def run_script(path: Path) -> None:
    """Runs a script of recipes/ as `python <path>` would, but for `sys.argv[0]`, and for the script's folder, which
    does not come first on Python's path."""
    code = compile(path.read_bytes(), str(path), "exec")
    exec(code, {"__name__": "__main__", "__file__": str(path)})


def _launcher_flags(arguments: list[str]) -> tuple[int, str | None, list[str]]:
    """`--nproc` and `--hardware`, which are ours, and the other arguments, which are the stage's."""
    given: dict[str, str] = {}
    rest, position = [], 0
    while position < len(arguments):
        flag, equals, value = arguments[position].partition("=")
        if flag not in ("--nproc", "--hardware"):
            rest.append(arguments[position])
        elif not equals and position + 1 == len(arguments):
            raise UserError(f"{flag} wants a value after it")
        else:
            given[flag] = value if equals else arguments[position + 1]
            position += not equals
        position += 1
    number = given.get("--nproc", "1")
    if not (number.isascii() and number.isdecimal() and int(number) >= 1):
        raise UserError(f"--nproc is {number}: give a whole number from 1 up")
    # the file says how many; 0: nobody else does
    return (int(number) if "--nproc" in given or "--hardware" not in given else 0), given.get("--hardware"), rest


def _start_several(script: Path, processes: int, file: Path, arguments: list[str]) -> NoReturn:
    """Becomes `accelerate launch` (recipes/launch.py), as `make NPROC=... HARDWARE=...` does."""
    if file.name.startswith("cpu"):
        # Accelerate does not hand `use_cpu` on to the processes: without it each one believes that it is alone.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    count = ["--num_processes", str(processes)] if processes else []
    launcher = [str(script.parent / "launch.py"), "--config_file", str(file), *count]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *launcher, str(script), *arguments])


def _hardware_file(named: str) -> Path:
    """A path, or the name of one that comes along."""
    ours = sorted((recipes() / "accelerate").glob("*.yaml"))
    found = {path.stem: path for path in ours}.get(named, Path(named))
    if not found.is_file():
        names = ", ".join(path.stem for path in ours)
        raise UserError(f"--hardware {named}: there is no such file; give the path of an accelerate file, or {names}")
    return found
