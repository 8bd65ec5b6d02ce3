"""The environment of the baseline: TRL 1.12, the last with a PPO, and else the project's own pins."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TRL = "1.12.0"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets")


def pins(constraints: str) -> str:
    """The project's constraints with another TRL."""
    return re.sub(r"^trl==.*$", f"trl=={TRL}", constraints, flags=re.MULTILINE)


def python(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, made when it is not there or its pins have changed.

    Raises:
        SystemExit: when `folder` holds something else, or when pip cannot install it; pip's reason stands above.
    """
    wanted = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    interpreter, stamp = folder / "bin" / "python", folder / ".baseline"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and _runs(interpreter):
        return interpreter
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"bench: {folder} exists and is not a virtual environment; name another with --trl-env.")
    print(f"Making {folder.name} with TRL {TRL} for the comparison (a few minutes the first time)", flush=True)
    stamp.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(wanted, encoding="utf-8")
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints]
    if subprocess.run([*pip, "trl", *LIBRARIES]).returncode:
        raise SystemExit(f"bench: TRL {TRL} does not install into {folder}; pip's reason stands above.")
    stamp.write_text(wanted, encoding="utf-8")
    return interpreter


def _runs(interpreter: Path) -> bool:
    return interpreter.exists() and subprocess.run([interpreter, "-c", ""]).returncode == 0
