"""Optimizer steps that are not made: where a loss or a gradient is not finite, weights and optimizer stay as they are.

A skipped step counts like any other: step counter, learning-rate schedule, rollouts and the order of the data go on as
if it had been made, so `max_steps` and PPO's updates keep their meaning. (With fp16 the schedule waits, which is
Trainer's own way with steps that the loss scaler skips.) All processes skip together, when one of them has to.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.safety.console import say
from pipeline.watching.watch import note_warning

FOLDER = "non_finite"  # in the run folder: the batches of skipped steps
IN_A_ROW = (
    3  # skipped steps that stop the run: one may be a single bad row, three mean that the run itself has diverged
)
MOST_FILES = 20  # batches that are written, so that a run which skips now and then does not fill the disk


class SkipsNonFinite:
    """Mixed into a Trainer, before its class: skips and counts steps whose loss or gradient is NaN or infinite.

    Each log has `skipped_steps`, those since the last log. The batch of a skipped step lies in `non_finite/` of the
    run folder. Under DeepSpeed the engine makes its steps by itself, and nothing is skipped here. With fp16 a gradient
    that overflows is the loss scaler's business; only a loss that is not finite counts.

    Raises:
        UserError: from `train` (and PPO's `step`) after three skipped steps in a row; a checkpoint is written first,
            whose weights and optimizer are those of before the first of the three. A run that is resumed from it goes
            on after the bad batches, with a new rollout.
    """

    _of_this_step: tuple[tuple[dict, Tensor], ...] = ()  # inputs and loss of each micro-batch
    _skipped = _skipped_in_a_row = _batches_written = 0
    _warned = False
    _why_stopped: str | None = None
    _buffered_inputs: list[dict[str, Any]] | None  # TRL's, of PPO, GRPO and RLOO

    def compute_loss(self, model, inputs, *args, **kwargs):
        kept = dict(inputs)  # some take columns out
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            loss = result[0] if isinstance(result, tuple) else result
            self.keep_loss(kept, loss)
        return result

    def keep_loss(self, inputs: dict, loss: Tensor) -> None:
        """Keeps what a micro-batch of the step was and its loss. A trainer that goes backward itself calls it too."""
        self._of_this_step = (*self._of_this_step, (dict(inputs), loss.detach()))

    # Trainer calls these two before each optimizer step, the first one only with a max_grad_norm
    def _clip_grad_norm(self, model):
        return None if self._skips(model) else super()._clip_grad_norm(model)

    def _get_grad_norm(self, model, grad_norm=None):
        skipped = grad_norm is None and (self.args.max_grad_norm > 0 or self._skips(model))
        return None if skipped else super()._get_grad_norm(model, grad_norm=grad_norm)

    def _skips(self, model: nn.Module) -> bool:
        """Whether the step ahead must not be made. If so, takes its gradient away: no gradient, no step."""
        micro_batches, self._of_this_step = self._of_this_step, ()
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED or not micro_batches:
            return False
        scaler = self.accelerator.scaler
        losses = torch.stack([loss.float().mean() for _, loss in micro_batches])
        norm = _norm(model) if scaler is None else losses.new_zeros(())
        bad = torch.stack([~losses.isfinite().all(), ~norm.isfinite()]).float()
        bad_loss, bad_gradient = self.accelerator.reduce(bad, reduction="sum").tolist()
        if not bad_loss and not bad_gradient:
            self._skipped_in_a_row = 0
            return False
        if bad[0] or not bad_loss:  # the process whose loss it is; each one, where all losses are finite
            self._write_batch(model, micro_batches, losses, norm)
        if scaler is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:  # it skips the step when it finds an infinite gradient
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.inf)
        self._count(bad_loss > 0)
        return True

    def _count(self, bad_loss: bool) -> None:
        step = self.state.global_step + 1
        self._skipped += 1
        self._skipped_in_a_row += 1
        what = "loss" if bad_loss else "gradient"
        where = Path(self.args.output_dir, FOLDER)
        say(f"Step {step} is skipped: its {what} is not finite. The batch lies in {where}.")
        if not self._warned and self.is_world_process_zero():
            self._warned = True
            text = (
                f"a step was skipped: its {what} was not finite. `skipped_steps` counts them; batches lie in {where}."
            )
            note_warning(self.args.output_dir, step, "non-finite", text)
        if self._skipped_in_a_row == IN_A_ROW:
            first, checkpoint = step - IN_A_ROW + 1, Path(self.args.output_dir, f"checkpoint-{step}")
            self._why_stopped = (
                f"the {what} was not finite in {IN_A_ROW} steps in a row ({first} to {step}), and training has "
                f"stopped. {checkpoint} has the weights of before step {first}; the batches lie in {where}. Mend "
                "what they show, or lower learning_rate, and go on with --resume."
            )
            self.control.should_save = self.control.should_training_stop = True
            if hasattr(
                self, "_buffered_inputs"
            ):  # of PPO, GRPO, RLOO: a resumed run shall not meet this rollout again
                self._buffered_inputs = None

    def _run_epoch(self, *args, **kwargs):
        result = super()._run_epoch(*args, **kwargs)
        if self._why_stopped:
            raise UserError(self._why_stopped)
        return result

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            logs = {**logs, "skipped_steps": self._skipped}
            self._skipped = 0
        return super().log(logs, *args, **kwargs)

    def _write_batch(self, model, micro_batches, losses: Tensor, norm: Tensor) -> None:
        """Writes `step-<n>.safetensors` (all tensors) and `step-<n>.json` (what a person reads)."""
        if self._batches_written == MOST_FILES:
            return
        self._batches_written += 1
        rank = f"-rank{self.args.process_index}" if self.args.world_size > 1 else ""
        path = Path(self.args.output_dir, FOLDER, f"step-{self.state.global_step + 1}{rank}")
        tensors = {
            f"{i}.{name}": value.detach().cpu().contiguous().clone()
            for i, (inputs, _) in enumerate(micro_batches)
            for name, value in inputs.items()
            if torch.is_tensor(value)
        }
        wrong = [n.removeprefix("module.") for n, p in model.named_parameters() if not _finite(_local(p.grad))]
        divided = any(hasattr(p, "to_local") for p in model.parameters())  # one process cannot run it alone
        forward = None if divided else self.accelerator.unwrap_model(model)
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        facts = {
            "step": self.state.global_step + 1,
            "losses": [_plain(loss) for loss in losses.tolist()],  # one a micro-batch
            "gradient_norm": _plain(norm.item()),
            "parameters_with_a_gradient_that_is_not_finite": wrong,
            "rows": [
                {"micro_batch": i, "row": row, **about}
                for i, (inputs, _) in enumerate(micro_batches)
                for row, about in enumerate(rows_of(inputs, tokenizer, forward))
            ],
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, f"{path}.safetensors")
            lines = [f" {json.dumps(key)}: {_json(value)}" for key, value in facts.items()]
            Path(f"{path}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", errors="replace")
        except OSError as error:  # a full disk must not end a run that can go on
            say(f"{path}.json cannot be written: {error.strerror}")


def rows_of(inputs: dict, tokenizer, model: nn.Module | None) -> list[dict]:
    """What each row of a micro-batch says, and what in it is not finite.

    Args:
        inputs: `input_ids` and `attention_mask` (B, T), or `prompt_ids`, `prompt_mask`, `completion_ids` and
            `completion_mask`, and whatever else the loss reads.
        model: to look which rows have logits that are not finite; None: do not look.

    Returns:
        for each row the ids without padding and their text; `not_finite`: names of inputs, and `logits`; `largest`:
        the largest absolute value of each input.
    """
    parts = {
        name: (inputs[f"{name}_ids"], inputs[mask])
        for name, mask in (("prompt", "prompt_mask"), ("completion", "completion_mask"), ("input", "attention_mask"))
        if torch.is_tensor(inputs.get(f"{name}_ids")) and torch.is_tensor(inputs.get(mask))
    }
    if not parts:
        return []
    ids, masks = (torch.cat(part, dim=1) for part in zip(*parts.values(), strict=True))
    rows = []
    for row in range(len(ids)):
        numbers = {
            name: value[row].abs().max().item()  # NaN if one of them is
            for name, value in inputs.items()
            if torch.is_tensor(value)
            and value.is_floating_point()
            and value.ndim
            and len(value) == len(ids)
            and value.numel()
        }
        wrong = [name for name, largest in numbers.items() if not math.isfinite(largest)]
        if model is not None and "pixel_values" not in inputs and not _finite(_logits(model, ids, masks, row)):
            wrong.append("logits")
        about: dict = {"not_finite": wrong, "largest": {name: _plain(x) for name, x in numbers.items()}}
        for name, (part, mask) in parts.items():
            kept = part[row][mask[row].bool()].tolist()
            about |= {f"{name}_ids": kept, "text" if name == "input" else name: tokenizer.decode(kept)}
        rows.append(about)
    return rows


@torch.no_grad()
def _logits(model: nn.Module, ids: Tensor, masks: Tensor, row: int) -> Tensor:
    """Of the real tokens of one row, alone and without dropout."""
    was_training = model.training
    model.eval()
    try:
        real = masks[row].bool()
        return model(input_ids=ids[row][real][None], attention_mask=masks[row][real][None]).logits
    finally:
        model.train(was_training)


def _norm(model: nn.Module) -> Tensor:
    """Norm of the gradient (of this process's part of it, where it is sharded); infinite if it overflows float32."""
    gradients = [_local(p.grad).float() for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


def _local(gradient: Tensor | None) -> Tensor | None:
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient


def _finite(x: Tensor | None) -> bool:
    return x is None or not x.is_floating_point() or bool(x.isfinite().all())


def _json(value) -> str:
    """A list of rows has a line for each of them."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "[\n  " + ",\n  ".join(_json(row) for row in value) + "\n ]"


def _plain(x: float) -> float | str:
    """JSON has no word for NaN and infinity."""
    return x if math.isfinite(x) else str(x)
