"""Resuming from a checkpoint that may be damaged, or from somebody else: numbers are read, and never code.

A checkpoint of the Trainer holds pickles (optimizer.pt, scheduler.pt, rng_state.pth). They are read with
`weights_only`, which knows tensors and plain values and calls nothing; whatever else is in one is an error here.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.safety.reading import MESSAGES, NUMBER, read_json
from pipeline.safety.weights import check_safetensors

STATE = "trainer_state.json"
_SHAPE = {
    "global_step": int,
    "epoch?": NUMBER,
    "max_steps?": int,
    "log_history?": MESSAGES,
    "best_model_checkpoint?": (str, None),
    "train_batch_size?": (int, None),
    "stateful_callbacks?": (dict, None),
}
_LARGEST_STEP = 10**12
_OUT_OF_MEMORY = "out of memory"


def from_checkpoint(what: str) -> Callable:
    """Decorates a Trainer's method that loads `what` from the folder of a checkpoint, its first argument: every
    failure becomes a `UserError` with one sentence."""

    def decorate(method: Callable) -> Callable:
        @functools.wraps(method)
        def load(self, checkpoint, *args, **kwargs):
            try:
                return method(self, checkpoint, *args, **kwargs)
            except (UserError, MemoryError):
                raise
            except Exception as error:
                if checkpoint is None or _OUT_OF_MEMORY in str(error):
                    raise
                raise UserError(
                    f"{checkpoint}: {what} cannot be read from it ({_reason(error)}): give an earlier checkpoint"
                ) from error

        return load

    return decorate


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnpicklingError":  # torch's own words advise to read it all the same
        return "there is something else in the file than numbers"
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def check_checkpoint(folder: Path) -> None:
    """Raises `UserError` unless `folder` has what every checkpoint has: safetensors, and a state that makes sense."""
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint {folder}: there is no such folder")
    if not (folder / STATE).is_file():
        raise UserError(f"resume_from_checkpoint {folder} is no complete checkpoint: {STATE} is missing")
    check_safetensors(folder, "checkpoint's")
    state = read_json(folder / STATE, _SHAPE)
    if not 0 <= state["global_step"] <= _LARGEST_STEP:
        raise UserError(f"{folder / STATE}: global_step is {state['global_step']}; give an earlier checkpoint")


class ReadsCheckpoints:
    """Mixed into a Trainer, before its class: a checkpoint that cannot be resumed from is one sentence, and none holds
    a pickle of the settings."""

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        # A pickle of the settings, with every token that stands in them; config.yaml says the same in plain text.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    @from_checkpoint("its weights")
    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    @from_checkpoint("optimizer and schedule")
    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)

    @from_checkpoint("the state of the random generators")
    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)

    @from_checkpoint("the scale of the gradients")
    def _load_scaler(self, checkpoint):
        super()._load_scaler(checkpoint)
