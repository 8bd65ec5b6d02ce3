"""Virtual environments of a check's own, made when they are not there or what they are made of has changed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_STAMP = ".made_of"


def environment(folder: Path, wanted: str, tried: str, advice: str, install: Callable[[Path], None]) -> Path:
    """The command `tried` of the environment in `folder`; `install` fills an empty one, and `wanted` says with what.

    Raises:
        SystemExit: `folder` holds something else; the sentence ends with `advice`.
    """
    command, stamp = folder / "bin" / tried, folder / _STAMP
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and _runs(folder) and command.exists():
        return command
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"{folder} exists and is not a virtual environment; {advice}.")
    stamp.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    install(folder)
    stamp.write_text(wanted, encoding="utf-8")
    return command


def pip(folder: Path, *what: str | Path) -> None:
    """Installs into the environment.

    Raises:
        SystemExit: pip cannot; its reason stands above.
    """
    quiet = ["--quiet", "--disable-pip-version-check"]
    if subprocess.run([folder / "bin" / "python", "-m", "pip", "install", *quiet, *what]).returncode:
        raise SystemExit(f"{what[-1]} does not install into {folder}; pip's reason stands above.")


def _runs(folder: Path) -> bool:
    python = folder / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", ""]).returncode == 0
