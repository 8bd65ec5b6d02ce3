"""The environment of the baseline: TRL 1.12, the last with a PPO, and else the project's own pins."""

import re
from pathlib import Path

from tests.tools.environments import environment, pip

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

    def install(folder: Path) -> None:
        print(f"Making {folder.name} with TRL {TRL} for the comparison (a few minutes the first time)", flush=True)
        constraints = folder / "constraints.txt"
        constraints.write_text(wanted, encoding="utf-8")
        pip(folder, "-c", constraints, *LIBRARIES, "trl")

    return environment(folder, wanted, "python", "name another with --trl-env", install)
