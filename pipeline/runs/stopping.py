"""Ctrl-C and SIGTERM: the step is finished, a checkpoint written, and the way to go on said."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.runs.folder import RunFolder
from pipeline.safety import commands
from pipeline.safety.console import is_main, say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STAGES = ("sft", "reward", "ppo", "a2c", "reinforce", "grpo", "rloo", "ilql", "dpo")


class Stopped(SystemExit):
    """A run that was asked to stop, and did so with a checkpoint; the code is that of a shell, 128 + signal."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)


@contextmanager
def graceful(trainer, folder: RunFolder) -> Iterator[None]:
    """Around `trainer.train()`: the first Ctrl-C, or SIGTERM, stops it after the step that it is at, with a
    checkpoint. A second Ctrl-C stops at once.

    Of one Ctrl-C in a terminal each process that torchrun has started gets two signals: the terminal's and torchrun's.

    Raises:
        Stopped: on all processes, when the run was stopped.
        KeyboardInterrupt: at the second Ctrl-C.
    """
    trainer.inputs = folder.inputs
    before = {}
    # only the main thread may set handlers; elsewhere signals do what they do
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.signal(signum, _handler(trainer)) for signum in SIGNALS}
    try:
        yield
        if trainer._keeper is not None:
            trainer._keeper.agree()  # a signal may have come after the last step
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if trainer.stopped:
        say(f"Stopped at step {trainer.state.global_step}. To go on: {command()}")
        raise Stopped(trainer.stopped)


def _handler(trainer):
    echoes = int("TORCHELASTIC_RUN_ID" in os.environ)

    def handle(signum, frame):
        nonlocal echoes
        if trainer.stop == signum == signal.SIGINT:
            if not echoes:
                raise KeyboardInterrupt
            echoes -= 1
        if not trainer.stop:
            trainer.stop = signum
            if is_main():
                # not print: the signal may have come in the middle of one
                more = " (Ctrl-C again: at once)" if signum == signal.SIGINT else ""
                os.write(2, f"\nStopping after this step, with a checkpoint{more}\n".encode())

    return handle


def farewell() -> str:
    """What to say when Ctrl-C has stopped the program at once."""
    return (
        f"stopped. To go on: {command()}"
        if Path(sys.argv[0].removeprefix(commands.OURS)).stem in STAGES
        else "stopped"
    )


def command() -> str:
    """The command that goes on with the run of this process."""
    if (typed := commands.typed()) is not None:
        return typed if typed.endswith(" --resume") else f"{typed} --resume"
    argv = [arg for arg in sys.argv if arg != "--resume"]
    if "MAKELEVEL" in os.environ and (config := commands.config_of(argv)):
        # what was set on the command line of make stands after the dashes
        given = [w for w in os.environ.get("MAKEFLAGS", "").partition("-- ")[2].split() if "RESUME=" not in w]
        return " ".join(["make", Path(config).stem, *given, "RESUME=1"])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"the same launch of {shlex.join([*argv, '--resume'])}"
    return shlex.join([Path(sys.executable).name, *argv, "--resume"])
