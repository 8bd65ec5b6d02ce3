"""Ends a training, with a checkpoint, where a reward says that there should be no further step: a judge's budget."""

from collections.abc import Sequence

import torch.distributed as dist
from transformers import TrainerCallback

from pipeline.errors import UserError
from pipeline.runs.stopping import command
from rewards import Reward, RewardFunction, every_in


class StopCallback(TrainerCallback):
    """Asks the rewards before the first step and after each; all processes stop together.

    Raises:
        UserError: at the end of the training, where a reward has stopped it.
    """

    def __init__(self, rewards: Sequence[RewardFunction]):
        found = [part for reward in rewards for part in every_in(reward)]
        self.rewards = [
            part
            for part in found
            if isinstance(part, Reward) and type(part).reason_to_stop is not Reward.reason_to_stop
        ]
        self.stopped: str | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.stopped = None
        self._ask()

    def on_step_end(self, args, state, control, **kwargs):
        reason = self._ask()
        if reason and state.global_step < state.max_steps:
            self.stopped = f"stopped at step {state.global_step} with a checkpoint. {reason}. To go on: {command()}"
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        if self.stopped:
            raise UserError(self.stopped)

    def _ask(self) -> str | None:
        """The first reason of any process, on all of them."""
        if not self.rewards:
            return None
        reason = next(filter(None, [reward.reason_to_stop() for reward in self.rewards]), None)
        if not (dist.is_available() and dist.is_initialized()):
            return reason
        reasons: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, reason)
        return next(filter(None, reasons), None)
