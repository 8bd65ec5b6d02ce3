"""What a run says in the terminal: from one process, and as text alone."""

import os

from pipeline.safety.visible import visible


def is_main() -> bool:
    """True in the one process that writes and prints (rank 0), also before anything distributed was set up."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str = "") -> None:
    """Prints on the main process only; what a model, a data set or a folder's name says cannot drive the terminal."""
    if is_main():
        print(visible(text), flush=True)
