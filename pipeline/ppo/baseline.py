"""Baselines besides the critic's, subtracted from the advantages of a completion. One that does not depend on the
completion itself leaves the expected gradient alone and lowers its variance (Williams 1992).

REINFORCE has no other. Under PPO and A2C the leave-one-out mean is that of what the critic did not expect: while it
knows nothing yet, that is the whole difference between easy and hard prompts; once it knows all, it is noise, 1/(n-1)
of the variance of the returns."""

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.ppo import math

DECAY = 0.9


class LeaveOneOut:
    """The mean return of the other completions of the same prompt, which may lie on another process."""

    state: float | None = None  # nothing for a checkpoint to keep

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator

    def __call__(self, totals: Tensor, counts: Tensor, group_size: int, training: bool) -> Tensor:
        """Returns of whole completions, less V of their prompts, which of them have a score -> baseline. All (B,)."""
        everyone = self._accelerator.gather(torch.stack([totals, counts.to(totals.dtype)], dim=1))
        start = self._accelerator.process_index * len(totals)
        found = math.leave_one_out(everyone[:, 0], everyone[:, 1].bool(), group_size)
        return found[start : start + len(totals)]


class MovingAverage:
    """b ← 0.9 b + 0.1 · mean return, of earlier rollouts alone: a rollout must not be its own baseline. 0 at first.

    `state` is what a checkpoint keeps.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self.state: float | None = None

    def __call__(self, totals: Tensor, counts: Tensor, group_size: int, training: bool) -> Tensor:
        """Returns of whole completions (B,), which of them have a score (B,) -> baseline (B,)."""
        baseline = torch.full_like(totals, self.state or 0.0)
        if training:
            sums = torch.stack([torch.where(counts, totals, 0).sum(), counts.sum().to(totals.dtype)])
            total, count = self._accelerator.reduce(sums, reduction="sum").tolist()
            mean = total / max(count, 1)
            self.state = mean if self.state is None else DECAY * self.state + (1 - DECAY) * mean
        return baseline


def build(name: str, accelerator: Accelerator) -> LeaveOneOut | MovingAverage | None:
    """The baseline of the setting `baseline`; None for `none`."""
    if name == "leave_one_out":
        return LeaveOneOut(accelerator)
    return MovingAverage(accelerator) if name == "moving_average" else None
