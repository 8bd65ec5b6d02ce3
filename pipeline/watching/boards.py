"""One class for each tracker: how it takes the exam's curves, the table of completions and the pictures of tokens.

The figures of the training it has from Transformers, whose callback opens it. A board stays open until it is closed
here: the last exam is taken after the training, when Transformers would have closed it already. Without
that MLflow and trackio would open a second run for what comes then, and TensorBoard a second file.
"""

import csv
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback
from transformers.integrations import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from pipeline.errors import UserError, shortened
from pipeline.safety.redaction import redact
from pipeline.safety.visible import visible
from rewards import text_of

ROWS = 8  # completions of an update that TensorBoard shows
AXIS = "train/global_step"  # Transformers' name for the steps, in trackers that count their own
_AS_TEXT = {ord(sign): f"&#{ord(sign)};" for sign in "&<>\\`*_[]()#|~!"} | {ord("\n"): "<br>"}


class Board:
    """A tracker of a run, on the main process.

    Args: callback: Transformers', which opens the tracker and sends it the figures of the training.
    """

    def __init__(self, trainer: Trainer, callback: Any):
        self.trainer, self.callback = trainer, callback
        self._end: Callable[[], None] | None = None  # what Transformers does at the end of the training

    def hold(self) -> None:
        """From now on the end of the training leaves the tracker open."""
        end = self.callback.on_train_end

        def later(*args, **kwargs) -> None:
            self._end = partial(end, *args, **kwargs)

        self.callback.on_train_end = later

    def figures(self, found: dict[str, float], step: int) -> None:
        """Numbers by their names, of this optimizer step."""
        raise NotImplementedError

    def completions(self, kept: dict, step: int) -> None:
        """TRL's record of the newest rollout (prompt, completion, rewards, advantages); TRL itself sends it to
        trackio and wandb."""

    def pictures(self, found: dict[str, np.ndarray], step: int) -> None:
        """Pictures by their names, uint8 (height, width, 3)."""
        raise NotImplementedError

    def close(self) -> None:
        """Does what was held back. A second call does nothing."""
        end, self._end = self._end, None
        if end is not None:
            end()


class TensorBoard(Board):
    """Event files; completions are Markdown in the Text tab."""

    @property
    def writer(self) -> Any:
        if self.callback.tb_writer is None:
            self.callback._init_summary_writer(self.trainer.args)
        return self.callback.tb_writer

    def figures(self, found: dict[str, float], step: int) -> None:
        for name, x in found.items():
            self.writer.add_scalar(name, x, step)
        self.writer.flush()

    def completions(self, kept: dict, step: int) -> None:
        self.writer.add_text("completions", completions_table(kept), step)

    def pictures(self, found: dict[str, np.ndarray], step: int) -> None:
        for name, picture in found.items():
            self.writer.add_image(name, picture, step, dataformats="HWC")


class Trackio(Board):
    """A SQLite file on this machine, or a Space."""

    def figures(self, found: dict[str, float], step: int) -> None:
        self.callback._trackio.log(found | {AXIS: step})

    def pictures(self, found: dict[str, np.ndarray], step: int) -> None:
        trackio = self.callback._trackio
        shown = {name: trackio.Image(picture, caption=name) for name, picture in found.items()}
        trackio.log(shown | {AXIS: step})


class Wandb(Board):
    """Weights & Biases. Its run is begun here, since it writes down the command line; a run that stands open already
    is the user's own, and is left open."""

    def __init__(self, trainer: Trainer, callback: Any):
        super().__init__(trainer, callback)
        self.ours = callback._wandb.run is None
        if self.ours:
            try:
                with secrets_off_the_command_line():
                    callback._wandb.init(project=os.getenv("WANDB_PROJECT", "huggingface"), name=trainer.args.run_name)
            except Exception as error:  # of many kinds: no account, no network, an old file of settings
                why = shortened(" ".join(redact(str(error)).split()), 300)
                raise UserError(
                    f"report_to: wandb could not begin a run ({why}); WANDB_MODE=offline needs none"
                ) from error

    def figures(self, found: dict[str, float], step: int) -> None:
        self.callback._wandb.log(found | {AXIS: step})

    def pictures(self, found: dict[str, np.ndarray], step: int) -> None:
        wandb = self.callback._wandb
        shown = {name: wandb.Image(picture, caption=name) for name, picture in found.items()}
        wandb.log(shown | {AXIS: step})

    def close(self) -> None:
        super().close()
        if self.ours and self.callback._wandb.run is not None:
            self.callback._wandb.finish()


class MLflow(Board):
    """An SQLite file or a server, by MLFLOW_TRACKING_URI; completions are CSV files, which its page shows as tables.

    Its own tables (`log_table`) are not used: each is named in a tag, and tags hold 8,000 characters.
    """

    def figures(self, found: dict[str, float], step: int) -> None:
        named = {re.sub(r"[^0-9A-Za-z_\-\.\ :/]", "_", name): x for name, x in found.items()}  # as Transformers does
        self.callback._ml_flow.log_metrics(named, step=step)

    def completions(self, kept: dict, step: int) -> None:
        self.callback._ml_flow.log_text(completions_csv(kept), f"completions/completions_{step:05d}.csv")

    def pictures(self, found: dict[str, np.ndarray], step: int) -> None:
        for name, picture in found.items():
            self.callback._ml_flow.log_image(picture, key=name, step=step)


BOARDS: dict[type[TrainerCallback], type[Board]] = {
    TensorBoardCallback: TensorBoard,
    TrackioCallback: Trackio,
    WandbCallback: Wandb,
    MLflowCallback: MLflow,
}


@contextmanager
def secrets_off_the_command_line() -> Iterator[None]:
    """Inside, `sys.argv` has no access token in it."""
    whole = sys.argv
    sys.argv = [redact(word) for word in whole]
    try:
        yield
    finally:
        sys.argv = whole


def completions_table(kept: dict, rows: int = ROWS) -> str:
    """A Markdown table of the first `rows` of TRL's record (prompt, completion, rewards, advantages)."""
    names = list(kept["rewards"])
    lines = [["prompt", "completion", *map(_cell, names), "advantage"], ["---"] * (len(names) + 3)]
    for prompt, completion, *numbers in _rows(kept)[:rows]:
        lines.append([_cell(text_of(prompt)), _cell(text_of(completion)), *(f"{x:.3f}" for x in numbers)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def completions_csv(kept: dict) -> str:
    """The whole of TRL's record as CSV, a row for each completion."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["prompt", "completion", *kept["rewards"], "advantage"])
    for prompt, completion, *numbers in _rows(kept):
        table.writerow([visible(text_of(prompt)), visible(text_of(completion)), *numbers])
    return text.getvalue()


def _rows(kept: dict) -> list[tuple]:
    columns = [kept["prompt"], kept["completion"], *kept["rewards"].values(), kept["advantages"]]
    return list(zip(*columns, strict=False))


def _cell(text: str) -> str:
    """`text` as text: neither HTML nor Markdown nor a new cell."""
    return visible(text.strip()).translate(_AS_TEXT)
