"""How hints name a command: as it was typed, or as it can be typed here.

In a clone a stage is `make ppo` or `python recipes/ppo.py`; whoever has the wheel types
`plumbline ppo`, and has no recipes/.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import UserError

OURS = "plumbline "  # `sys.argv[0]` of a process that was started so begins with it (plumbline/launching.py)
TYPED = "PLUMBLINE_TYPED"  # what was typed, in processes that Accelerate has started


def typed() -> str | None:
    """The whole command line of this process, if it began with `plumbline`."""
    if sys.argv[0].startswith(OURS):
        return f"{sys.argv[0]} {shlex.join(sys.argv[1:])}".strip()
    return os.environ.get(TYPED)


def by_plumbline() -> bool:
    """Whether a hint is to name `plumbline`: it was typed, or there are no scripts in recipes/ here."""
    return typed() is not None or not Path("recipes/ppo.py").is_file()


def command(name: str) -> str:
    """`python recipes/merge.py`, or `plumbline merge`."""
    return f"{OURS}{name}" if by_plumbline() else f"python recipes/{name}.py"


class Parser(argparse.ArgumentParser):
    """argparse's, with errors as `UserError` in place of two lines and an exit, and no abbreviated flags.

    Args: prog: the program; `python ...` is named otherwise where `plumbline ...` was typed.
    """

    def __init__(self, prog: str, **settings: Any):
        otherwise = prog.startswith("python ") and sys.argv[0].startswith(OURS)
        super().__init__(sys.argv[0] if otherwise else prog, **{**settings, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help)")


def target(name: str) -> str:
    """`make seeds`, or `plumbline seeds`."""
    return f"{OURS}{name}" if by_plumbline() else f"make {name}"


def config_of(argv: list[str]) -> str | None:
    """What stands after `--config`."""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        if arg == "--config":
            return following
        if arg.startswith("--config="):
            return arg.partition("=")[2]
    return None


def following(stage: str) -> str | None:
    """`plumbline <stage>` with the YAML that lies beside the one of this command; None where it is to be `make`.

    A recipe without a reward model goes on with PPO.
    """
    if not by_plumbline():
        return None
    config = config_of(sys.argv)
    if config is None:
        return f"{OURS}{stage} --config ..."
    folder = Path(config).parent
    if stage == "reward" and not (folder / "reward.yaml").exists() and (folder / "ppo.yaml").exists():
        stage = "ppo"
    return f"{OURS}{stage} --config {shlex.quote(str(folder / stage))}.yaml"
