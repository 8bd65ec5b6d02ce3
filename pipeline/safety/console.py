"""What a run says in the terminal: from one process, and as text alone."""

import os
import sys
from typing import Any, NoReturn

from pipeline.safety.visible import visible


def is_main() -> bool:
    """True in the one process that writes and prints (rank 0), also before anything distributed was set up."""
    return int(os.environ.get("RANK", "0")) == 0


def from_main(value: Any) -> Any:
    """The main process's value on every process, so that all do the same instead of one waiting for ever."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def say(text: str = "") -> None:
    """Prints on the main process only; what a model, a data set or a folder's name says cannot drive the terminal."""
    if is_main():
        print(visible(text), flush=True)


def leave_unread() -> NoReturn:
    """Ends the program after a BrokenPipeError, as a shell says it (141: SIGPIPE): nobody reads what it prints."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
    raise SystemExit(141)
