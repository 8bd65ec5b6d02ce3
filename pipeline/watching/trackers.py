"""Trackers (`report_to`): tensorboard, trackio and wandb through Transformers. None is on unless it is asked for.

Transformers sends the figures, TRL the table of completions to wandb and trackio. What is added here: a clear word
when a package is missing, TensorBoard's files in the run folder, and the completions as text in TensorBoard.
"""

from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from pipeline.watching.terminal import visible
from rewards import text_of

TENSORBOARD = "tensorboard"  # the folder in the run folder
ROWS = 8  # completions of an update that TensorBoard shows
_AS_TEXT = {ord(sign): f"&#{ord(sign)};" for sign in "&<>\\`*_[]()#|~!"} | {ord("\n"): "<br>"}


def connect(trainer: Trainer) -> None:
    """Puts TensorBoard's files into `<output_dir>/tensorboard`, and the completions of each update with them.

    An environment variable TENSORBOARD_LOGGING_DIR still wins.
    """
    boards = [c for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
    for board in boards:
        # Without it an evaluation before training would open a folder `runs` where the command was started.
        board.logging_dir = board.logging_dir or str(Path(trainer.args.output_dir, TENSORBOARD))
        if getattr(trainer.args, "log_completions", False):
            trainer.add_callback(CompletionsInTensorBoard(trainer, board))


class CompletionsInTensorBoard(TrainerCallback):
    """Writes some completions of the newest rollout as a Markdown table, at each log of the training."""

    def __init__(self, trainer: Trainer, board: TensorBoardCallback):
        self.trainer, self.board = trainer, board

    def on_log(self, args, state, control, logs=None, **kwargs):
        new = "loss" in (logs or {}) and self.trainer._logs["prompt"]  # TRL's own record of the newest rollout
        if state.is_world_process_zero and new and self.board.tb_writer is not None:
            self.board.tb_writer.add_text("completions", completions_table(self.trainer._logs), state.global_step)


def completions_table(kept: dict, rows: int = ROWS) -> str:
    """A Markdown table of the first `rows` of TRL's record (prompt, completion, rewards, advantages)."""
    names = list(kept["rewards"])
    lines = [["prompt", "completion", *map(_cell, names), "advantage"], ["---"] * (len(names) + 3)]
    columns = [kept["prompt"], kept["completion"], *kept["rewards"].values(), kept["advantages"]]
    for prompt, completion, *numbers in list(zip(*columns, strict=False))[:rows]:
        lines.append([_cell(text_of(prompt)), _cell(text_of(completion)), *(f"{x:.3f}" for x in numbers)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """`text` as text: neither HTML nor Markdown nor a new cell."""
    return visible(text.strip()).translate(_AS_TEXT)
