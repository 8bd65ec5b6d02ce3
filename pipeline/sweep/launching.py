"""Runs beside each other: each a process of its own with a log beside its folder."""

import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path


def launch(words: list[str], log: Path, jobs: int) -> subprocess.Popen:
    """Starts `python <words>`, its output at the end of `log`, which is locked for as long as the process, or this
    one, lives.

    Args: jobs: how many run at once; of several each has one thread.
    """
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})
    with log.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a run that outlived the one that started it ends first
        file.write(shlex.join(words) + "\n")
        file.flush()
        return subprocess.Popen([sys.executable, *words], stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=env)
