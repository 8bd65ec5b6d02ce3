"""How far a long pass over many texts is, and how long it will take: a bar in a terminal, lines in a log file."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from pipeline.runs.folder import is_main

EVERY = 120  # seconds between two lines of a log file, at most
Count = Callable[[int], None]  # is told how many more are done
Counting = Callable[[int], AbstractContextManager[Count]]  # is told how many there are


def uncounted(count: int) -> None:
    """Shows nothing."""


def unshown(total: int) -> AbstractContextManager[Count]:
    """A `Counting` that shows nothing."""
    return nullcontext(uncounted)


@contextmanager
def counting(
    what: str,
    total: int,
    first: bool = True,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Count]:
    """Inside the block, what this gives is called with each number of texts that are done, of `total`, and shows it.

    In a terminal by a bar that goes when it is done; elsewhere by a line after the first part, unless that is all, and
    then at least every two minutes.

    Args:
        first: whether that first line is said, or the first one after two minutes.
        console: where to; by default standard output. clock: seconds that only grow.
    """
    # rich would take the variable FORCE_COLOR for a terminal, and write its control characters into a log file
    console, begun, done = console or Console(force_terminal=sys.stdout.isatty()), clock(), 0
    last = -math.inf if first else begun
    with ExitStack() as stack:
        bar = stack.enter_context(make_bar(console)) if console.is_terminal and is_main() else None
        task = bar.add_task(what, total=total, count=f"0/{total}", left="") if bar else None

        def show(count: int) -> None:
            nonlocal done, last
            done, now = done + count, clock()
            left = (now - begun) / max(done, 1) * (total - done)
            if bar:
                bar.update(task, completed=done, count=f"{done}/{total}", left=f"{as_clock(left)} left")
            elif done < total and now - last >= EVERY:
                last = now
                print(f"{what}: {done}/{total}, about {in_words(left)} left", file=console.file, flush=True)

        yield show if is_main() else uncounted


class _Evaluating(TrainerCallback):
    """Counts the batches of `trainer.evaluate()`."""

    def __init__(self, what: str, stack: ExitStack):
        self.what, self.stack = what, stack
        self.count: Count | None = None

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.count is None:
            self.count = self.stack.enter_context(counting(self.what, len(eval_dataloader)))
        self.count(1)


@contextmanager
def evaluating(trainer: Trainer, what: str) -> Iterator[None]:
    """Inside the block, `trainer.evaluate()` is shown so, in place of the trainer's own bar."""
    for theirs in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(theirs)
    with ExitStack() as stack:
        ours = _Evaluating(what, stack)
        trainer.add_callback(ours)
        stack.callback(trainer.remove_callback, ours)
        yield


def make_bar(console: Console) -> Progress:
    """A bar with the fields `count` and `left`, which goes when it is stopped."""
    columns = ("{task.description}", "{task.fields[count]}", "{task.fields[left]}")
    text, count, left = (TextColumn(column, markup=False) for column in columns)
    return Progress(
        text,
        BarColumn(bar_width=None),
        count,
        left,
        console=console,
        expand=True,
        transient=True,
        refresh_per_second=2,
        redirect_stderr=sys.stderr.isatty(),  # 2> errors.log stays there
    )


def as_clock(seconds: float) -> str:
    """`4:05`, or `1:04:05`.

    >>> as_clock(245), as_clock(3845), as_clock(float("nan"))
    ('4:05', '1:04:05', '-:--')
    """
    if math.isnan(seconds):
        return "-:--"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def in_words(seconds: float) -> str:
    """A time to wait, as a line of a log says it.

    >>> in_words(99.4), in_words(3600), in_words(36000), in_words(float("nan"))
    ('99 s', '60 min', '10.0 h', '?')
    """
    if math.isnan(seconds):
        return "?"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
