"""A run's claim to its output folder: one run at a time, and a run that fails before it trained leaves nothing.

The lock is on the folder itself (flock), held while the run lives: no file that could be left behind, and the kernel
lets go of it when the process ends in whatever way, SIGKILL included. On a network file system it keeps out the runs
of the same machine only.
"""

import fcntl
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

_held: dict[Path, "Claim"] = {}  # by this process, which may run several stages after each other


class Claim:
    """One folder that this process may write to."""

    def __init__(self, descriptor: int | None, fresh: bool, made: bool):
        self.descriptor, self.fresh, self.made, self.trained = descriptor, fresh, made, False


def take(folder: Path, made: bool = False) -> bool:
    """Claims an existing folder for this process; False when another run holds it.

    Args: made: by this process, just now.
    """
    folder = folder.resolve()
    if folder in _held:
        return True
    fresh = not any(folder.iterdir())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # a file system without locks
        os.close(descriptor)
        descriptor = None
    _held[folder] = Claim(descriptor, fresh, made)
    return True


def ends_with(run: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a stage: the claims that it took end with it, and what a failed start wrote goes away."""

    @functools.wraps(run)
    def claimed(*args, **kwargs):
        before = set(_held)
        try:
            result = run(*args, **kwargs)
        except BaseException:
            for folder in set(_held) - before:
                _tidy(folder, _held[folder])
            raise
        finally:
            for folder in set(_held) - before:
                _release(_held.pop(folder))
        return result

    return claimed


class Trained(TrainerCallback):
    """Notes the first optimizer step: from then on a failed run leaves its files, which hold somebody's hours."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()

    def on_step_end(self, args, state, control, **kwargs):
        keep(self.folder)


def keep(folder: Path) -> None:
    """From here on a run that fails leaves its files: what it was begun for lies there."""
    if claim := _held.get(folder.resolve()):
        claim.trained = True


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[None]:
    """What the block began to write into `folder` goes away when it fails, as on a full disk; what was there stays."""
    before = set(folder.rglob("*"))
    try:
        yield
    except BaseException:
        for path in sorted(set(folder.rglob("*")) - before, reverse=True):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _tidy(folder: Path, claim: Claim) -> None:
    """Empties the folder of a run that began in an empty one and has not trained: a rerun may take it again. One that
    the run had made itself goes away."""
    if not claim.fresh or claim.trained or any(folder.glob("checkpoint-*")):
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if claim.made:
        with suppress(OSError):  # somebody has just put something into it
            folder.rmdir()


def _release(claim: Claim) -> None:
    if claim.descriptor is not None:
        os.close(claim.descriptor)


def _leave_to_parent() -> None:
    """A forked worker must not keep the lock of a run that was killed."""
    for claim in _held.values():
        _release(claim)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
