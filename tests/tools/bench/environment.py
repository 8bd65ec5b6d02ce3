"""The environments of the rivals: TRL 1.12, the last with a PPO, with the project's own pins; AgileRL with its own."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.tools.environments import environment, pip

ROOT = Path(__file__).resolve().parents[3]
TRL = "1.12.0"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets")
# What its language models need on a CPU; the rest of what it asks for, as games and search, is left out.
AGILERL = ("agilerl==2.55.0", "agilerl-arena")
AGILERL_NEEDS = (
    *("torch==2.13.0", "transformers==5.14.1", "peft==0.21.0", "accelerate", "datasets==5.0.1", "tensordict==0.13.0"),
    *(
        "gymnasium",
        "pettingzoo<1.27",
        "omegaconf",
        "hydra-core",
        "h5py",
        "dill",
        "fastrand",
        "flatten-dict",
        "lazy-loader",
    ),
    *("wandb", "redis"),
)


def pins(constraints: str) -> str:
    """The project's constraints with another TRL."""
    return re.sub(r"^trl==.*$", f"trl=={TRL}", constraints, flags=re.MULTILINE)


def trl(folder: Path) -> Path:
    """The interpreter of TRL's environment in `folder`, made when it is not there or its pins have changed.

    Raises:
        SystemExit: when `folder` holds something else, or when pip cannot install it; pip's reason stands above.
    """
    wanted = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))

    def install(folder: Path) -> None:
        print(f"Making {folder.name} with TRL {TRL} for the comparison (a few minutes the first time)", flush=True)
        constraints = folder / "constraints.txt"
        constraints.write_text(wanted, encoding="utf-8")
        pip(folder, "-c", constraints, *LIBRARIES, "trl")

    return environment(folder, wanted, "python", "name another with --rival-env", install)


def agilerl(folder: Path) -> Path:
    """The interpreter of AgileRL's environment in `folder`, likewise."""

    def install(folder: Path) -> None:
        print(f"Making {folder.name} with {AGILERL[0]} for the comparison (a few minutes the first time)", flush=True)
        pip(folder, *AGILERL_NEEDS)
        pip(folder, "--no-deps", *AGILERL)

    wanted = "\n".join((*AGILERL, *AGILERL_NEEDS))
    return environment(folder, wanted, "python", "name another with --rival-env", install)


class Rival(NamedTuple):
    title: str
    folder: Path
    python: Callable[[Path], Path]


RIVALS = {
    "trl": Rival("TRL 1.12", ROOT / ".venv-trl112", trl),
    "agilerl": Rival("AgileRL 2.55", ROOT / ".venv-agilerl", agilerl),
}
