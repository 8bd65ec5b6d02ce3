"""What a person sees while a stage runs: a line an update, the time that is left, now and then a sample.

In a terminal each line is a row of a table as wide as the terminal, above a bar; elsewhere (a log file, a pipe) there
is a plain line after the first update, then at each tenth of the run, and at least every two minutes, however long an
update takes. After the first update both say where its time went. Whatever a model wrote is shown as text: it can
neither format nor drive the terminal.
"""

import logging
import math
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import datasets
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from pipeline.config import steps_per_update
from pipeline.safety import commands
from pipeline.safety.console import is_main
from pipeline.safety.visible import visible
from pipeline.watching.progress import EVERY, Pulse, as_clock, in_words, make_bar, until
from rewards import text_of
from rewards.turns import transcript


class Figure(NamedTuple):
    """A column of the table: its heading, the metrics that it may show (the first that is there), and how."""

    label: str
    metrics: tuple[str, ...]
    form: str = ".3f"


# In the order of their weight: a narrow terminal shows the first ones. PPO's names, then those of TRL's own trainers.
FIGURES = (
    Figure("score", ("score", "reward")),
    Figure("kl", ("kl",), ".2f"),
    Figure("entropy", ("entropy",)),
    Figure("length", ("length/mean", "completions/mean_length"), ".1f"),
    Figure("expl.var", ("explained_variance",), ".2f"),
    Figure("clipped", ("clip_fraction/policy", "clip_ratio/region_mean")),
    Figure("finished", ("finished",), ".2f"),
    Figure("grad", ("grad_norm",), ".2f"),
)
FIGURES_SUPERVISED = (
    Figure("loss", ("loss",)),
    Figure("accuracy", ("accuracy", "mean_token_accuracy")),
    Figure("margin", ("margin",)),
    Figure("grad", ("grad_norm",), ".2f"),
    Figure("rate", ("learning_rate",), ".1e"),
)
CLOCK = "time/"  # begins the names of the seconds that the parts of an update took
IN_A_LINE = 5  # figures in a line of a log file
WIDTH = 7  # of a column, at least
PROMPT_SHOWN, COMPLETION_SHOWN = 240, 480  # characters of a sample


def quiet() -> None:
    """Switches off the libraries' progress bars for small things and their notices to developers."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    for text in (".*pin_memory.*", ".*vocabulary.*save_embedding_layers.*", ".*Could not find a config file.*"):
        warnings.filterwarnings("ignore", message=text)
    if not is_main():
        warnings.filterwarnings("ignore")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal's encoding lacks must not stop a run
            stream.reconfigure(errors="backslashreplace")


def one_line(text: str, limit: int) -> str:
    """`text` for a sample: visible, newlines as a sign, and no longer than `limit` characters."""
    text = visible(text.strip()).replace("\n", "⏎ ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


@contextmanager
def show_progress(
    trainer: Trainer,
    name: str,
    sample_every: int = 0,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Inside the block, training is shown in the terminal in place of the trainer's own printing.

    Args:
        name: what is trained, as the lines shall call it.
        sample_every: updates between two samples from the rollout that training made; 0: none.
        console: where to; by default standard output, with a bar if it is a terminal.
        clock: seconds that only grow.
    """
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    # rich would take the variable FORCE_COLOR for a terminal, and write its control characters into a log file
    console = console or Console(force_terminal=sys.stdout.isatty())
    watch = (Rows if console.is_terminal else Lines)(trainer, name, sample_every, console, clock)
    trainer.add_callback(watch)
    try:
        yield
    finally:
        watch.close()
        trainer.remove_callback(watch)


class Watch(TrainerCallback):
    """Counts updates, estimates the time that is left and picks the samples; subclasses print, on one process."""

    def __init__(
        self,
        trainer: Trainer,
        name: str,
        sample_every: int,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.trainer, self.name, self.sample_every, self.console = trainer, name, sample_every, console
        self.clock = clock
        args = trainer.args
        samples = hasattr(args, "steps_per_generation")
        self.unit = "update" if samples else "step"
        self.per_update = steps_per_update(args) if samples else 1
        self.figures = FIGURES if samples else FIGURES_SUPERVISED
        self.latest: dict[str, float] = {}
        self.spent: dict[str, float] = {}  # seconds of each part of the update
        self.done = self.total = 0  # updates

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first, self.first_shown = self.clock(), state.global_step, False
        self.ends = math.nan  # when the last update will, by the clock
        self.done, self.total = state.global_step // self.per_update, math.ceil(state.max_steps / self.per_update)
        if state.is_world_process_zero:
            self.begin()

    def on_step_end(self, args, state, control, **kwargs):
        steps = max(1, state.global_step - self.first)
        now = self.clock()
        self.ends = now + (now - self.started) / steps * (state.max_steps - state.global_step)
        if state.is_world_process_zero:
            self.advance(state.global_step / self.per_update)
        if not control.should_log:  # else figures come at once
            self.on_substep_end(args, state, control)

    def on_substep_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.wait(state.global_step // self.per_update)

    on_prediction_step = on_substep_end  # of an evaluation in between

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        held_out = {key.removeprefix("eval_"): value for key, value in logs.items() if key.startswith("eval_")}
        if held_out:
            self.show_held_out(self.values(held_out))
            return
        self.latest |= logs
        for name, seconds in logs.items():
            if name.startswith(CLOCK):  # an update may be logged in several steps
                self.spent[name.removeprefix(CLOCK)] = self.spent.get(name.removeprefix(CLOCK), 0.0) + seconds
        before, self.done = self.done, state.global_step // self.per_update
        if self.done > before:
            self.show(self.values(self.latest), "" if self.first_shown else split(self.spent, self.done - before))
            if self.sample_every and self.done // self.sample_every > before // self.sample_every:
                self.show_sample()
            self.latest, self.spent, self.first_shown = {}, {}, True

    @property
    def left(self) -> float:
        """Seconds until the end of training; not a number before the first step."""
        return max(0.0, self.ends - self.clock()) if self.ends == self.ends else math.nan

    def values(self, logs: dict) -> dict[str, str | None]:
        """The text of each figure that this stage logs at all; None where it is missing this time."""
        return {
            figure.label: _number(next((logs[metric] for metric in figure.metrics if metric in logs), None), figure)
            for figure in self.figures
            if any(metric in logs for metric in figure.metrics)
        }

    def show_sample(self) -> None:
        """Prints the first completion of the newest rollout, which TRL keeps for its table of completions."""
        kept = getattr(self.trainer, "_logs", None)
        if not kept or not kept["prompt"]:
            return
        prompt, completion = kept["prompt"][0], kept["completion"][0]
        prompt = prompt if isinstance(prompt, str) else text_of(prompt[-1:])
        scores = {name: column[0] for name, column in kept["rewards"].items() if column}
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row("  prompt", Text(one_line(prompt, PROMPT_SHOWN)))
        grid.add_row("  completion", Text(one_line(transcript(completion), COMPLETION_SHOWN)))
        shown = ", ".join(f"{visible(name)} {'-' if _missing(x) else format(x, '.3f')}" for name, x in scores.items())
        grid.add_row("  scores", Text(shown))
        self.console.print(grid)

    def begin(self) -> None:
        """Training begins."""

    def advance(self, updates: float) -> None:
        """So many updates are done; the last one may be a part."""

    def wait(self, updates: int) -> None:
        """Time goes by; so many updates are done."""

    def show(self, values: dict[str, str | None], spent: str) -> None:
        """The figures of an update; of the first one also where its time went."""

    def show_held_out(self, values: dict[str, str | None]) -> None:
        """The figures of an evaluation in between."""

    def close(self) -> None:
        """Training has ended, or failed."""


class Lines(Watch):
    """For output that is not a terminal: a line after the first update, at each tenth, and every two minutes."""

    shown = 0
    pulse: Pulse | None = None

    def begin(self):
        self.close()  # of a training that was begun anew
        self.shown, self.last = self._tenth(), self.clock()
        self.updates = self.done  # they may be further than their figures
        self.lock = threading.Lock()  # the pulse is another thread
        self.pulse = Pulse(self.beat)

    def wait(self, updates):
        self.updates = updates
        self.beat()

    def beat(self) -> None:
        """A line, if the newest one is two minutes old."""
        with self.lock:
            if self.clock() - self.last >= EVERY:
                doing = getattr(getattr(self.trainer, "journal", None), "doing", None)
                self._say(self._how_far(self.updates) + (f", now {doing}" if doing else ""))

    def show(self, values, spent):
        with self.lock:
            self.updates = self.done
            if not self.first_shown or self._tenth() > self.shown or self.clock() - self.last >= EVERY:
                self.shown = self._tenth()
                self._say(self._how_far(self.done), values, spent)

    def show_held_out(self, values):
        with self.lock:
            self._say("held out", values)

    def close(self):
        if self.pulse:
            self.pulse.close()

    def _how_far(self, done: int) -> str:
        return f"{self.unit} {done}/{self.total}, {until(self.left, self.clock() - self.started)}"

    def _tenth(self) -> int:
        return 10 * self.done // max(1, self.total)

    def _say(self, what: str, values: dict[str, str | None] | None = None, spent: str = "") -> None:
        known = [f", {label} {value}" for label, value in (values or {}).items() if value is not None][:IN_A_LINE]
        self.last, spent = self.clock(), spent and f"; {spent}"
        print(f"{self.name}: {what}{''.join(known)}{spent}", file=self.console.file, flush=True)


class Rows(Watch):
    """A table that grows by a row an update, above a bar; for a terminal."""

    bar: Progress | None = None
    heading: str | None = None  # the one above the newest row

    def begin(self):
        self.bar = make_bar(self.console)
        self.task = self.bar.add_task(self.name, total=self.total, completed=self.done, count="", left="")
        self.advance(self.done)
        self.bar.start()

    def advance(self, updates):
        if self.bar:
            count = f"{self.unit} {math.floor(updates)}/{self.total}"
            self.bar.update(self.task, completed=updates, count=count, left=f"{as_clock(self.left)} left")

    def show(self, values, spent):
        first = max(len(self.unit), 2 * len(str(self.total)) + 1)
        cells = [(self.unit, f"{self.done}/{self.total}", first)]
        room = self.console.width - first - 1 - WIDTH
        for label, value in values.items():
            width = max(WIDTH, len(label), len(value or ""))
            if room < width + 1:
                break
            room -= width + 1
            cells.append((label, value or "-", width))
        cells.append(("left", as_clock(self.left), WIDTH))
        heading = " ".join(label.rjust(width) for label, _, width in cells)
        if heading != self.heading:
            self._print(heading, style="bold")
            self.heading = heading
        self._print(" ".join(value.rjust(width) for _, value, width in cells))
        if spent:
            self._print(f"  {spent}", style="dim")

    def show_held_out(self, values):
        known = ", ".join(f"{label} {value}" for label, value in values.items() if value is not None)
        self._print(f"held out: {known}")

    def show_sample(self):
        super().show_sample()
        self.heading = None  # the next row comes with one

    def close(self):
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _print(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style=style), no_wrap=True, overflow="crop", crop=True)


def split(seconds: dict[str, float], updates: int) -> str:
    """Where the time of an update went: a text, empty where nothing was measured.

    Args: seconds: of each part, in `updates` updates together.

    >>> split({"generation": 28.0, "scoring": 0.0, "forward": 28.0, "training": 126.0}, 2)
    '91 s an update: generation 15%, scoring 0%, forward 15%, training 69%'
    """
    if not (total := sum(seconds.values())):
        return ""
    parts = ", ".join(f"{name} {part / total:.0%}" for name, part in seconds.items())
    each = total / updates
    return f"{f'{each:.2g} s' if each < 10 else in_words(each)} an update: {parts}"


def _missing(x: float | None) -> bool:
    return not isinstance(x, int | float) or math.isnan(x)


def _number(x: float | None, figure: Figure) -> str | None:
    if _missing(x):
        return None
    text = format(x, figure.form)
    return text if len(text) <= WIDTH + 1 else format(x, ".2g")


def next_step(stage: str, output_dir: str | Path) -> str:
    """The command that runs `stage` after the one whose results lie in `output_dir` (`runs/<recipe>/<stage>`).

    A recipe without a reward model goes on with PPO.
    """
    if command := commands.following(stage):
        return command
    parts = Path(output_dir).parts
    recipe = parts[-2] if len(parts) >= 3 and parts[-3] == "runs" else None
    if recipe is None:
        return f"accelerate launch recipes/{stage}.py --config ... --model_name_or_path {output_dir}"
    if stage == "reward" and Path("recipes", recipe, "ppo.yaml").exists():
        stage = stage if Path("recipes", recipe, "reward.yaml").exists() else "ppo"
    return f"make {stage}" if recipe == "tiny" else f"make {stage} RECIPE=recipes/{recipe}"
