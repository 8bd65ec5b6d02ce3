"""What can happen to any run on any machine, in one sentence each: a full disk, no memory, no right to write."""

import errno
import os
import sqlite3
from collections.abc import Iterator

from safetensors import SafetensorError

from pipeline.errors import UserError
from rewards.base import RewardError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Not the program's fault, whatever it did. Other numbers, such as ENOENT, may well be: they keep their stack trace.
MACHINES = (*FULL, *DENIED, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EADDRINUSE, errno.ENODEV)
NO_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory", "bad_alloc", "bad allocation")
NO_DEVICE = ("torch not compiled with cuda", "no cuda gpus are available", "found no nvidia driver", "invalid device")


def in_words(error: BaseException) -> str | None:
    """The sentence for an error that the person in front of the machine can mend; None for a bug of ours.

    A full disk is looked for among the causes too: torch turns it into a RuntimeError of its own.
    """
    if isinstance(error, UserError | RewardError):
        return " ".join(str(error).split())
    if any(isinstance(e, sqlite3.OperationalError) and "full" in str(e) for e in _with_causes(error)):
        return _of_number(errno.ENOSPC, None)
    full = (e for e in _with_causes(error) if isinstance(e, OSError) and e.errno in FULL)
    return _of_the_machine(next(full, error))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _of_the_machine(error: BaseException) -> str | None:
    said = str(error).lower()
    no_memory = isinstance(error, RuntimeError | SafetensorError) and any(words in said for words in NO_MEMORY)
    if isinstance(error, MemoryError) or no_memory or getattr(error, "errno", None) == errno.ENOMEM:
        where = "GPU" if "cuda" in said else "machine"
        return (
            f"the {where} is out of memory: lower per_device_train_batch_size or max_completion_length (in the SFT "
            "and reward-model stages max_length), or set gradient_checkpointing: true"
        )
    if isinstance(error, RuntimeError | AssertionError) and any(words in said for words in NO_DEVICE):
        return f"a GPU was asked for, but this machine has none that torch can use ({_first_line(error)}): use the CPU"
    if isinstance(error, SafetensorError) and "(os error " in said:
        number = said.rpartition("(os error ")[2].rstrip(") ")
        return _of_number(int(number), None) if number.isdigit() else None
    if isinstance(error, OSError) and error.errno in MACHINES:
        return _of_number(error.errno, error.filename)
    return None


def _of_number(number: int, file: str | None) -> str | None:
    reason, where = os.strerror(number), f" {file}" if file else ""
    if number in FULL:
        return f"a file{where} could not be written ({reason}): make room, or give an --output_dir on another disk"
    if number in DENIED:
        return f"a file{where} may not be read or written ({reason}): change its rights, or give another --output_dir"
    return f"the system cannot give access to{where or ' a file'} ({reason})" if number in MACHINES else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
