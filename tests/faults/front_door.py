"""Recipes as a person launches them, a real process for each case: real exit code, real standard error, real limits.

The processes are forks of one that has the libraries imported (tests/support/warm.py).
"""

from pathlib import Path
from typing import NamedTuple

from warm import ROOT, Warm

LONGEST = 600  # characters of an error line; a longer one is not read


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
    """Starts recipes in `folder`; see `Warm.start` for `env`, `limits` and `presets`."""

    def __init__(self, warm: Warm):
        self.warm = warm

    def start(self, recipe: str, argv: list[str], folder: Path, **more) -> int:
        """The id of a process that runs `recipes/<recipe>.py argv` in `folder`."""
        return self.warm.start([str(ROOT / "recipes" / f"{recipe}.py"), *argv], folder, **more)

    def wait(self, process: int) -> Done:
        """How it ended."""
        [done] = self.warm.wait(process)
        return Done(*done)

    def __call__(self, recipe: str, argv: list[str], folder: Path, **more) -> Done:
        return self.wait(self.start(recipe, argv, folder, **more))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`; the content of files."""
    paths = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}
