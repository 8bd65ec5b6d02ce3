"""A Trainer whose run can be stopped at any moment and goes on to the same bits.

Trainer's own checkpoints hold weights, optimizer, schedule and random generators. What is added here is whatever else
the next step or the next line of `metrics.jsonl` depends on, and that a checkpoint is there whole or not at all.
"""

import hashlib
import json
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from pipeline.errors import UserError
from pipeline.runs import checkpoint_files
from pipeline.runs.checkpoint_loading import ReadsCheckpoints, check_checkpoint, from_checkpoint
from pipeline.safety.console import from_main, say

SAVING_SHARE = 0.05  # of the time, at most, goes into checkpoints that are written because time has passed
_ROWS_LOOKED_AT = 200  # of the training data, to tell whether they are the same


class Resumable(ReadsCheckpoints):
    """Mixed into a Trainer, before its class. Subclasses keep what is theirs by `save_rest` and `load_rest`.

    `train(resume_from_checkpoint=folder)` goes on from a checkpoint of this class.

    Raises:
        UserError: when the checkpoint is damaged, or was made of other data, another model or by another number of
            processes.
    """

    resumed_from: Path | None = None
    stop: int = 0  # a signal that asks to stop after this step
    stopped: int = 0  # the one on which all processes have agreed
    _staging: str | None = None  # while a checkpoint is being written
    _keeper: "Keeper | None" = None
    seconds_before = 0.0  # of training, in the processes before this one
    seconds_of_a_save = 0.0  # what the last checkpoint took
    _began: float | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.inputs: dict[str, Any] = {}  # what the run is made from: name -> fingerprint

    def save_rest(self, folder: Path) -> None:
        """Writes what a subclass must keep; called on every process."""

    def load_rest(self, folder: Path) -> None:
        """Takes it back, after the optimizer was loaded; called on every process."""

    # ------------------------------------------------------------ train
    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args, **kwargs):
        if resume_from_checkpoint is True:
            run = Path(self.args.output_dir)
            resume_from_checkpoint = from_main(
                checkpoint_files.newest(run, say) if self.is_world_process_zero() else None
            )
            if resume_from_checkpoint is None:
                raise UserError(f"resume_from_checkpoint: there is no whole checkpoint in {run}")
        self.resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if self.resumed_from is not None:
            self._check_checkpoint(self.resumed_from)
        if self._keeper is None:
            self._keeper = Keeper(self)
            self.add_callback(self._keeper)
        return super().train(self.resumed_from and str(self.resumed_from), *args, **kwargs)

    def _check_checkpoint(self, folder: Path) -> None:
        checkpoint_files.check(folder)
        check_checkpoint(folder)
        then, now = checkpoint_files.read_manifest(folder)["inputs"], self._inputs()
        for name in then.keys() & now.keys():
            if then[name] != now[name]:
                raise UserError(
                    f"{name} is {now[name]}, but {folder} was made with {then[name]}: a run goes on with what it "
                    "began with. Put it back, or begin anew with another --output_dir"
                )

    def _inputs(self) -> dict[str, Any]:
        return self.inputs | {"processes": self.args.world_size, "training data": _look_of(self.train_dataset)}

    def _run_epoch(self, *args, **kwargs):
        # resumed from the last step: Trainer would make one more, because it looks for the end after a step
        if 0 < self.state.max_steps <= self.state.global_step and self.resumed_from is not None:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def log(self, logs, start_time=None):
        if "train_runtime" in logs and self.seconds_before:
            seconds = logs["train_runtime"] + self.seconds_before
            for name in ("train_samples_per_second", "train_steps_per_second"):
                logs[name] = round(logs[name] * logs["train_runtime"] / seconds, 3)
            logs["train_runtime"] = round(seconds, 4)
        super().log(logs, start_time)

    # ------------------------------------------------------------ save
    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._staging is None:  # else it comes when the checkpoint is complete
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial):
        started = time.monotonic()
        run = Path(self._get_output_dir(trial))
        final, aside = (
            place / f"checkpoint-{self.state.global_step}" for place in (run, run / checkpoint_files.PARTIAL)
        )
        if self.args.should_save:
            checkpoint_files.clear(run)
        self.accelerator.wait_for_everyone()
        self._staging = str(aside.parent)
        try:
            super()._save_checkpoint(model, trial)
            self._save_progress(aside)
            self.save_rest(aside)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._name_best(run, aside)
            (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
            facts = {"step": self.state.global_step, "inputs": self._inputs(), "whole": not self.args.save_only_model}
            checkpoint_files.seal(aside, final, facts)
            best = self.state.best_model_checkpoint
            checkpoint_files.keep_newest(run, self.state.global_step, self.args.save_total_limit, best)
        self.accelerator.wait_for_everyone()
        self.seconds_of_a_save = time.monotonic() - started
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _name_best(self, run: Path, aside: Path) -> None:
        """The best checkpoint has its final name, also where it is the one that is being written."""
        if self.state.best_global_step:
            best = run / f"checkpoint-{self.state.best_global_step}"
            if best.name == aside.name or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self.state.save_to_json(str(aside / "trainer_state.json"))

    def _save_progress(self, folder: Path) -> None:
        progress = {
            "tr_loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "seconds": self._seconds(),
            "metrics": {name: [float(x) for x in xs] for name, xs in self._metrics["train"].items()},
            "train_tokens": getattr(self, "_total_train_tokens", None),
        }
        _write_json(self._progress_file(folder), progress)
        if self.args.should_save:
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "save_rest"):
                    callback.save_rest(folder)

    def _seconds(self) -> float:
        return self.seconds_before + (time.monotonic() - self._began if self._began is not None else 0.0)

    def _progress_file(self, folder: Path) -> Path:
        return folder / f"progress_{self.args.process_index}.json"

    # ------------------------------------------------------------ load
    @from_checkpoint("the state of the run")
    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.load_rest(Path(checkpoint))

    def _begin(self) -> None:
        """After Trainer has reset its own counts, before the first step."""
        self.seconds_before, self._began = 0.0, time.monotonic()
        if self.resumed_from is None:
            return
        self.model.train()  # nobody else does it where no step is left, and the figures of training are asked for
        if self.state.global_step > self.state.max_steps:
            raise UserError(
                f"the run has made {self.state.global_step} steps already, more than the {self.state.max_steps} that "
                "are asked for now: raise max_steps (or total_episodes, num_train_epochs)"
            )
        self.state.compute_steps(self.args, self.state.max_steps)  # else those of the checkpoint hold
        progress = _read_json(self._progress_file(self.resumed_from))
        self._tr_loss.fill_(progress["tr_loss"])
        self._total_loss_scalar, self._globalstep_last_logged = progress["total_loss"], progress["last_logged"]
        self._initial_global_step = 0  # Trainer divides the sum of the losses by the steps since
        self.seconds_before = progress["seconds"]
        self._metrics["train"].update(progress["metrics"])
        if progress["train_tokens"] is not None:
            self._total_train_tokens = progress["train_tokens"]
        if self.is_world_process_zero():
            checkpoint_files.cut(Path(self.args.output_dir), self.resumed_from)


class ResumableRollouts(Resumable):
    """For trainers that sample: also the rollout that is in use, the order of the prompts and the journal."""

    _buffered_inputs: list[dict[str, Any]] | None  # TRL's

    def save_rest(self, folder: Path) -> None:
        micro_step = self._step % self._micro_steps_per_rollout
        logs = {name: _plain(self._logs[name]) for name in ("prompt", "completion", "rewards", "advantages", "extra")}
        state = {"micro_step": micro_step, "journal": self.journal.state(), "logs": logs if micro_step else None}
        _write_json(self._file(folder, "rollout", "json"), state)
        if micro_step and self._buffered_inputs is not None:  # dropped after steps that were not finite
            tensors = {
                f"{index}.{name}": value.contiguous()
                for index, micro_batch in enumerate(self._buffered_inputs)
                for name, value in micro_batch.items()
                if isinstance(value, torch.Tensor)
            }
            # clones: micro-batches share what is one number for all, and safetensors refuses shared memory
            tensors = {name: value.cpu().clone() for name, value in tensors.items()}
            save_file(tensors, self._file(folder, "rollout", "safetensors"))

    def load_rest(self, folder: Path) -> None:
        state = _read_json(self._file(folder, "rollout", "json"))
        self._step, self._buffered_inputs = state["micro_step"], None
        self.journal.load_state(state["journal"])
        if self._file(folder, "rollout", "safetensors").exists():
            tensors = load_file(self._file(folder, "rollout", "safetensors"))
            self._buffered_inputs = [{} for _ in range(self.args.steps_per_generation)]
            for name, value in tensors.items():
                index, key = name.split(".", 1)
                self._buffered_inputs[int(index)][key] = value.to(self.args.device)
            for name, kept in state["logs"].items():
                if isinstance(kept, dict):
                    for column, values in kept.items():
                        self._logs[name][column].extend(values)
                else:
                    self._logs[name].extend(kept)
        self._pass_over_epochs()

    @property
    def _micro_steps_per_rollout(self) -> int:
        return self.args.steps_per_generation * self.num_iterations

    def _file(self, folder: Path, name: str, ending: str) -> Path:
        return folder / f"{name}_{self.args.process_index}.{ending}"

    def _get_train_sampler(self, dataset=None):
        self.prompt_order = super()._get_train_sampler(dataset)
        return self.prompt_order

    def _pass_over_epochs(self) -> None:
        """TRL's sampler shuffles anew in every epoch with one generator: draw the orders that are behind.

        Without it every resumed run would see the prompts in the order of the first epoch.
        """
        order = getattr(self, "prompt_order", None)
        if order is None or not order.shuffle:
            return
        batches = len(order) // self.args.generation_batch_size
        steps = max(batches // self.args.gradient_accumulation_steps, 1)
        for _ in range(self.state.global_step // steps):
            torch.randperm(order.num_samples, generator=order.generator)


class Keeper(TrainerCallback):
    """Brings the counts back at the start, and says after each step whether to save and whether to stop.

    A checkpoint is due `save_minutes` after the last one (later, where writing one takes long), and when a signal has
    come. All processes do the same: one may have got the signal a step earlier, and only one looks at the clock.
    """

    def __init__(self, trainer: Resumable):
        self.trainer, self.last_save, self.postponed = trainer, time.monotonic(), False

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._begin()
        self.last_save, self.postponed = time.monotonic(), False

    def on_step_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # Accelerate's loader that skips what is done does not know how many rows the last batch of the epoch has, and
        # TRL's figures would count those twice that fill it up
        active = self.trainer.accelerator.gradient_state.active_dataloader
        if self.trainer.resumed_from is not None and getattr(active, "remainder", None) == -1:
            with suppress(AttributeError, TypeError):  # a stream has no length
                if train_dataloader._drop_last:
                    return
                active.remainder = len(train_dataloader.dataset) % train_dataloader.total_batch_size

    def on_step_end(self, args, state, control, **kwargs):
        stop, due = self.agree(self.due(args))
        if stop:
            control.should_training_stop = True
        if stop or (due and state.global_step < state.max_steps):
            control.should_save = True
        at_end = state.epoch == int(state.epoch) or state.global_step >= state.max_steps
        if control.should_save and at_end and not stop and "epoch" in (args.eval_strategy, args.logging_strategy):
            # what is logged at the end of the epoch belongs before the checkpoint, or a resumed run would lack it
            control.should_save, self.postponed = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.trainer.stopped:
            control.should_save = control.should_evaluate = control.should_log = False
        elif self.postponed:
            control.should_save, self.postponed = True, False

    def on_save(self, args, state, control, **kwargs):
        self.last_save = time.monotonic()

    def due(self, args) -> bool:
        """Whether the time for a checkpoint has come, as the main process sees it."""
        minutes = getattr(args, "save_minutes", 0)
        if args.save_strategy == "no" or not minutes or not self.trainer.is_world_process_zero():
            return False
        pause = max(60 * minutes, self.trainer.seconds_of_a_save / SAVING_SHARE)
        return time.monotonic() - self.last_save >= pause

    def agree(self, due: bool = False) -> tuple[int, bool]:
        """The signal that any process has got (0: none), and whether any finds that a checkpoint is due."""
        trainer = self.trainer
        stop = trainer.stop
        if trainer.args.world_size > 1:
            mine = torch.tensor([float(stop), float(due)], device=trainer.args.device)
            signals, dues = trainer.accelerator.gather(mine[None]).unbind(dim=1)
            stop, due = int(signals.max()), bool(dues.max())
        trainer.stopped = stop
        return stop, due


def _look_of(dataset) -> str | None:
    """A short hash of how many rows there are and of some of them; None for a stream."""
    if dataset is None or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return None
    rows = len(dataset)
    digest = hashlib.sha256(str(rows).encode())
    for index in range(0, rows, max(1, rows // _ROWS_LOOKED_AT)):
        digest.update(repr(dataset[index]).encode("utf-8", "surrogatepass"))
    return f"{rows} rows ({digest.hexdigest()[:12]})"


def _plain(kept: Any) -> Any:
    if isinstance(kept, dict):
        return {name: _plain(column) for name, column in kept.items()}
    return list(kept) if isinstance(kept, deque) else kept


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, default=str), encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a complete checkpoint: {path.name} is missing. Give another.") from None
