"""How far a long pass over many texts is, and how long it will take: a bar in a terminal, lines in a log file."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from pipeline.runs.folder import is_main

EVERY = 120  # seconds between two lines of a log file, at most
_LOOK = 15  # seconds between two looks at the clock
Count = Callable[[int], None]  # is told how many more are done
Counting = Callable[[int], AbstractContextManager[Count]]  # is told how many there are


class Pulse:
    """Calls `beat` again and again from a thread of its own until it is closed, so that a line comes also while one
    call takes minutes: a rollout, a reward, a large batch.

    Args:
        wait: waits a while, and says whether to end; by default `_LOOK` seconds, unless it is closed before.
    """

    def __init__(self, beat: Callable[[], None], wait: Callable[[], bool] | None = None):
        self._closed = threading.Event()
        self._beat, self._wait = beat, wait or (lambda: self._closed.wait(_LOOK))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._wait():
            self._beat()

    def close(self) -> None:
        """Ends it; no beat comes afterwards."""
        self._closed.set()
        self._thread.join()


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
    at least every two minutes, whether or not a part is done.

    Args:
        first: whether that first line is said, or the first one after two minutes.
        console: where to; by default standard output. clock: seconds that only grow.
    """
    # rich would take the variable FORCE_COLOR for a terminal, and write its control characters into a log file
    console = console or Console(force_terminal=sys.stdout.isatty())
    with ExitStack() as stack:
        if not is_main():
            yield uncounted
        elif console.is_terminal:
            yield _Bar(what, total, stack.enter_context(make_bar(console)), clock).count
        else:
            lines = _Lines(what, total, console, clock, first)
            stack.callback(Pulse(lines.beat).close)
            yield lines.count


class _Counted:
    """How many of `total` are done, and when they all will be."""

    def __init__(self, what: str, total: int, clock: Callable[[], float]):
        self.what, self.total, self.clock = what, total, clock
        self.begun, self.done = clock(), 0

    def left(self) -> float:
        """Seconds until all are done; not a number before the first."""
        return (self.clock() - self.begun) / self.done * (self.total - self.done) if self.done else math.nan


class _Bar(_Counted):
    """In a terminal."""

    def __init__(self, what: str, total: int, bar: Progress, clock: Callable[[], float]):
        super().__init__(what, total, clock)
        self.bar, self.task = bar, bar.add_task(what, total=total, count=f"0/{total}", left="")

    def count(self, count: int) -> None:
        self.done += count
        left = f"{as_clock(self.left())} left"
        self.bar.update(self.task, completed=self.done, count=f"{self.done}/{self.total}", left=left)


class _Lines(_Counted):
    """In a log file."""

    def __init__(self, what: str, total: int, console: Console, clock: Callable[[], float], first: bool):
        super().__init__(what, total, clock)
        self.console, self.last, self.due = console, self.begun, first
        self._lock = threading.Lock()  # the beat comes from another thread

    def count(self, count: int) -> None:
        with self._lock:
            self.done += count
            if self.done < self.total:
                self._say_if(self.due)
                self.due = False

    def beat(self) -> None:
        """A look at the clock, whether or not anything was done."""
        with self._lock:
            self._say_if(False)

    def _say_if(self, due: bool) -> None:
        now = self.clock()
        if due or now - self.last >= EVERY:
            self.last = now
            when = until(self.left() if self.done < self.total else math.nan, now - self.begun)
            print(f"{self.what}: {self.done}/{self.total}, {when}", file=self.console.file, flush=True)


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


def until(left: float, since: float) -> str:
    """How long it still takes, or, where that is not known, how long it took so far.

    >>> until(300, 60), until(float("nan"), 130)
    ('about 5 min left', '2 min so far')
    """
    return f"{in_words(since)} so far" if math.isnan(left) else f"about {in_words(left)} left"


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
