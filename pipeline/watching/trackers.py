"""Trackers (`report_to`): tensorboard, trackio, wandb and mlflow through Transformers. None is on unless asked for.

Transformers sends the figures of the training, TRL the table of completions to wandb and trackio. What is added here:
a clear word when a package is missing, TensorBoard's files in the run folder, the completions in TensorBoard and
MLflow, and in all four the curves of the exam and the pictures of what each token earned (docs/trackers.md).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from pipeline.runs.folder import HELDOUT, read_heldout
from pipeline.safety.console import say
from pipeline.safety.redaction import redact
from pipeline.watching.boards import BOARDS, Board

TENSORBOARD = "tensorboard"  # the folder in the run folder
COUNTS = ("step", "update", "episodes", "tokens", "seconds", "cpu_seconds")  # of a row of heldout.jsonl


def connect(trainer: Trainer) -> None:
    """Puts TensorBoard's files into `<output_dir>/tensorboard`, and has every tracker take the exam's curves and the
    completions of each update. Whoever calls it calls `finish` as well; `trainer` may be one without a tracker.

    An environment variable TENSORBOARD_LOGGING_DIR still wins.
    """
    callbacks = list(trainer.callback_handler.callbacks)
    for board in (c for c in callbacks if isinstance(c, TensorBoardCallback)):
        # Without it an evaluation before training would open a folder `runs` where the command was started.
        board.logging_dir = board.logging_dir or str(Path(trainer.args.output_dir, TENSORBOARD))
    if not trainer.is_world_process_zero():
        return
    boards = [board(trainer, c) for c in callbacks for kind, board in BOARDS.items() if isinstance(c, kind)]
    for board in boards:
        board.hold()
    if boards:
        trainer.add_callback(ToBoards(trainer, boards))


def finish(trainer: Trainer, pictures: Callable[[], dict[str, np.ndarray]] = dict) -> None:
    """Sends the last exam and the pictures, and closes the trackers. The result lies in the run folder already, so a
    tracker that takes no more costs a line and not the run.

    Args: pictures: makes them by their names, uint8 (height, width, 3); they show completions, and are neither made
        nor sent where `log_completions` is off.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ToBoards):
            callback.finish(pictures)


class ToBoards(TrainerCallback):
    """Sends each row of `heldout.jsonl` once, and with each log of the training the completions of the newest rollout.

    Args: boards: the trackers; on the main process only.
    """

    def __init__(self, trainer: Trainer, boards: list[Board]):
        self.trainer, self.boards = trainer, boards
        self.shows_completions = bool(getattr(trainer.args, "log_completions", False))
        self.file = Path(trainer.args.output_dir, HELDOUT)
        self.sent_until, self.read_until = -1, 0  # optimizer step, bytes

    def on_train_begin(self, args, state, control, **kwargs):
        # what stands in the file of a resumed run was sent before it was stopped
        self.sent_until = state.global_step if state.global_step > 0 else -1
        self.send_exams()

    def on_step_end(self, args, state, control, **kwargs):
        self.send_exams()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self.shows_completions or "loss" not in (logs or {}):
            return
        kept = self.trainer._logs  # TRL's own record of the newest rollout
        for board in self.boards if kept["prompt"] else ():
            board.completions(kept, state.global_step)

    def send_exams(self) -> None:
        """The exams that were taken since the last call."""
        size = self.file.stat().st_size if self.file.is_file() else 0
        rows = read_heldout(self.file.parent) if size != self.read_until else []
        self.read_until = size
        for row in rows:
            if row["step"] > self.sent_until:
                self.sent_until = row["step"]
                for board in self.boards:
                    board.figures(exam_figures(row), row["step"])

    def finish(self, pictures: Callable[[], dict[str, np.ndarray]]) -> None:
        try:
            self.send_exams()
            found = pictures() if self.shows_completions else {}
            for board in self.boards if found else ():
                board.pictures(found, self.trainer.state.global_step)
        except Exception as error:
            say(f"note: a tracker did not take the last exam or pictures: {redact(str(error))}")
        finally:
            self.close()

    def close(self) -> None:
        for board in self.boards:
            try:
                board.close()
            except Exception as error:
                say(f"note: {type(board).__name__} was not closed in order: {redact(str(error))}")


def exam_figures(row: dict) -> dict[str, float]:
    """What the trackers show of a row of `heldout.jsonl`, by `exam/…`; what has no number is left out.

    >>> exam_figures({"step": 4, "kl": 0.5, "score": 1.5, "rewards": {"bleu": 0.25, "own": None}, "referee": {}})
    {'exam/kl': 0.5, 'exam/score': 1.5, 'exam/rewards/bleu': 0.25}
    """
    found = {}
    for name, x in row.items():
        if isinstance(x, dict):
            found |= {f"exam/{name}/{key}": y for key, y in x.items()}
        elif name not in COUNTS:
            found[f"exam/{name}"] = x
    return {name: float(x) for name, x in found.items() if x is not None}
