"""Going over the rollouts of earlier updates again.

Their tokens were sampled by an older policy. Each pass over them takes the current policy as the one to stay
near (log-probabilities, values and advantages are computed anew) and weighs every token by min(c, π_now / π_sampled):
the decoupled objective of Hilton, Cobbe, Schulman 2022 (arXiv 2110.00641, eq. 5) with the truncation of Espeholt et
al. 2018 (arXiv 1802.01561). Advantages are not corrected for the age of what follows a token, so a rollout that is
many updates old would mislead: keep `replay` small.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from pipeline.ppo import math
from pipeline.ppo.batches import CRITIC_STATES, Batch
from pipeline.ppo.experience import Experience, Rollout

CAP = 2.0  # the largest weight of a token
_KEPT = (
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "importance_sampling_ratio"),
    CRITIC_STATES,
)
# (batch, rollout) -> the rollout as the policy and the critic see it now, its Experience
Refresh = Callable[[Batch, Rollout], tuple[Rollout, Experience]]


class Replay:
    """The newest rollout and the `size` before it, with the passes of an update that go over them.

    Of the `num_iterations` passes of an update the last `size` go over earlier rollouts, the newest of them first. As
    long as there are not that many, they go over the new one.
    """

    def __init__(self, size: int):
        self.size = size
        self.kept: deque[dict[str, Tensor]] = deque(maxlen=size + 1)  # [0] is the newest
        self.micro_batches: list[Batch] | None = None  # of the pass that is going on, if it goes over an earlier one

    def keep(self, batch: Batch, rollout: Rollout) -> None:
        """Keeps a new rollout for the next updates."""
        kept = {name: batch[name] for name in _KEPT if isinstance(batch.get(name), Tensor)}
        kept |= {f"rollout.{name}": x for name, x in rollout._asdict().items() if x is not None}
        self.kept.appendleft(kept)

    def begin_pass(self, index: int, num_iterations: int, refresh: Refresh, steps: int) -> None:
        """Called before the first micro-batch of pass `index` (0, 1, ...) of an update.

        Args:
            refresh: what `Refresh` says.
            steps: micro-batches in a pass.
        """
        age = index - (num_iterations - self.size) + 1
        self.micro_batches = None
        if not 1 <= age < len(self.kept):
            return
        batch: Batch = dict(self.kept[age])
        sampled = Rollout(
            **{n.removeprefix("rollout."): batch.pop(n) for n in list(batch) if n.startswith("rollout.")}
        )
        now, experience = refresh(batch, sampled)
        update: Any = _update_batch(batch, sampled, now, experience)  # TRL's two functions differ in their annotations
        shuffled: Any = shuffle_sequence_dict(update)
        self.micro_batches = list(split_tensor_dict(shuffled, steps))

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must keep, by name."""
        groups = {f"kept.{i}": kept for i, kept in enumerate(self.kept)}
        groups |= {f"pass.{i}": batch for i, batch in enumerate(self.micro_batches or [])}
        return {f"{g}.{n}": x for g, group in groups.items() for n, x in group.items() if isinstance(x, Tensor)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""
        groups: dict[str, dict[int, dict[str, Tensor]]] = {"kept": {}, "pass": {}}
        for key, x in state.items():
            group, index, name = key.split(".", 2)
            groups[group].setdefault(int(index), {})[name] = x
        self.kept.clear()
        self.kept.extend(groups["kept"][i] for i in sorted(groups["kept"]))
        self.micro_batches = [dict(groups["pass"][i]) for i in sorted(groups["pass"])] or None


def _update_batch(batch: Batch, sampled: Rollout, now: Rollout, experience: Experience) -> dict[str, Tensor]:
    weight = math.truncated_weight(now.old_logprobs, sampled.old_logprobs, CAP)
    weight = torch.where(sampled.loss_mask.bool(), weight, 0)
    return batch | {
        "loss_mask": sampled.loss_mask,
        "old_per_token_logps": now.old_logprobs,
        "old_values": now.values,
        "advantages": experience.advantages,
        "returns": experience.returns,
        "importance_sampling_ratio": batch.get("importance_sampling_ratio", 1.0) * weight,
    }
