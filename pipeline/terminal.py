"""What a person sees while a stage runs: a progress bar with an ETA, and none of the libraries' chatter."""

import logging
import sys
import time
import warnings
from pathlib import Path

import datasets
import transformers
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from pipeline.run_folder import is_main, say

SHOWN = ("score", "kl", "loss", "accuracy", "margin", "mean_token_accuracy", "reward")


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


def show_progress(trainer: Trainer, name: str) -> None:
    """Replaces the trainer's own printing: a bar with the loss beside it, or, in a log file, a line each tenth."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Bar() if sys.stderr.isatty() else Lines(name))


def _shown(logs: dict) -> dict[str, str]:
    return {key: f"{logs[key]:.3f}" for key in SHOWN if isinstance(logs.get(key), int | float)}


class Bar(ProgressCallback):
    """transformers' bar and ETA, with the newest figures beside it instead of a line for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs:
            self.training_bar.set_postfix(_shown(logs) or None)


class Lines(TrainerCallback):
    """About ten lines a run, for output that is not a terminal."""

    def __init__(self, name: str):
        self.name, self.latest = name, {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first, self.told = time.monotonic(), state.global_step, 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.latest = _shown(logs or {}) or self.latest

    def on_step_end(self, args, state, control, **kwargs):
        tenth = 10 * state.global_step // max(1, state.max_steps)
        if not state.is_world_process_zero or tenth == self.told:
            return
        self.told = tenth
        done = max(1, state.global_step - self.first)
        left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
        figures = "".join(f", {key} {value}" for key, value in self.latest.items())
        say(f"{self.name}: step {state.global_step}/{state.max_steps}, about {left:.0f} s left{figures}")


def next_step(stage: str, output_dir: str | Path) -> str:
    """The command that runs `stage` after the one whose results lie in `output_dir` (`runs/<recipe>/<stage>`)."""
    parts = Path(output_dir).parts
    recipe = parts[-2] if len(parts) >= 3 and parts[-3] == "runs" else None
    if recipe is None:
        return f"accelerate launch recipes/{stage}.py --config ... --model_name_or_path {output_dir}"
    return f"make {stage}" if recipe == "tiny" else f"make {stage} RECIPE=recipes/{recipe}"
