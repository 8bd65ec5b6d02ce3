"""What PPOTrainer logs, and when (`watching/metrics.py` says what each figure is)."""

from collections import defaultdict
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor

from pipeline.ppo import math
from pipeline.ppo.aggregation import Paid, advantage_shares, share_names
from pipeline.ppo.batches import Batch
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.critic import Critic
from pipeline.ppo.experience import Experience, Rollout
from pipeline.rollouts.scoring import weigh
from pipeline.rollouts.vllm_trainer import difference
from pipeline.watching.journal import Journal, repetition

# GRPO's own statistics (PPO has no groups), and what is logged here under the names of metrics.PPO
_NOT_LOGGED = {"reward", "reward_std", "frac_reward_zero_std", "num_tokens", "step_time"}
_NOT_LOGGED_GROUPS = ("rewards/", "completions/", "profiling/")


class Logged(Protocol):
    """What of a PPOTrainer is logged, and where."""

    model: PeftModel
    args: PPOConfig
    advantage: math.AdvantageEstimator
    reward_func_names: list[str]
    accelerator: Accelerator
    critic: Critic | None
    kl_coef: float
    journal: Journal
    _logs: dict[str, Any]  # TRL's completions table
    _metrics: dict[str, defaultdict[str, list[float]]]  # TRL's figures, those of `train` and of `eval`

    @property
    def _notes(self) -> Journal: ...


def sampled(batch: Batch) -> Tensor:
    """(B, T), 1 = a token of the policy; 0 = padding or what a tool wrote."""
    mask: Tensor = batch["completion_mask"]
    return mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]


def log_scores(trainer: Logged, scores_per_reward: Tensor, weights: Tensor) -> Tensor:
    """What the rewards said, (B, F) with NaN for a missing score; weights (F,). Returns which rows have one, (B,)."""
    scores, scorable = weigh(scores_per_reward, weights)
    trainer._notes.add("score", scores, scorable)
    for name, column in zip(trainer.reward_func_names, scores_per_reward.T, strict=True):
        trainer._notes.add(f"score/{name}", column, ~torch.isnan(column))
    return scorable


def log_rollout(
    trainer: Logged, batch: Batch, rollout: Rollout, experience: Experience, finished: Tensor, paid: Paid
) -> None:
    """A rollout and what was made of it. Changes nothing but the trainer's journal and TRL's completions table."""
    mask, journal, reduce_sum = rollout.loss_mask, trainer._notes, trainer.journal.sum
    lengths, counts = sampled(batch).sum(dim=1), mask.any(dim=1)
    journal.add("kl", experience.kl.sum(dim=1), counts)
    journal.add("returns", experience.returns, mask)
    journal.add("length/mean", lengths)
    journal.largest("length/max", lengths)
    journal.smallest("length/min", lengths)
    journal.add("finished", finished)
    if (theirs := batch.get("sampling_per_token_logps")) is not None:
        kl, ratio = difference(rollout.old_logprobs, theirs)
        journal.add("sampler/kl", kl, mask)
        journal.largest("sampler/ratio_max", ratio, mask)
    journal.add("repetition", repetition(batch["completion_ids"], batch["completion_mask"]))
    journal.add("score_std", math.moments(rollout.scores, counts, reduce_sum)[1].sqrt()[None])
    shares = advantage_shares(paid, rollout, experience, trainer.args, trainer.kl_coef, trainer.advantage, reduce_sum)
    for name, share in zip(share_names(trainer.reward_func_names), shares, strict=True):
        journal.add(name, share[None], ~torch.isnan(share)[None])
    journal.add("kl_coef", torch.tensor([trainer.kl_coef], device=mask.device))
    if trainer.critic is not None:
        explained = math.explained_variance(rollout.values, experience.returns, mask, reduce_sum)
        journal.add("explained_variance", explained[None])
        journal.add("values", rollout.values, mask)
    # TRL's completions table has a column for the advantage: give it the mean over the completion
    advantage = experience.advantages.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    advantage = trainer.accelerator.gather(advantage).tolist()
    column = trainer._logs["advantages"]
    for _ in range(min(len(advantage), len(column))):
        column.pop()
    column.extend(advantage)


def log_policy(
    journal: Journal,
    mask: Tensor,
    log_ratio: Tensor,
    entropy: Tensor,
    policy_loss: Tensor,
    ratio: Tensor,
    clipped: Tensor,
) -> None:
    """The policy in one micro-batch; everything (B, T)."""
    log_ratio = log_ratio.detach()
    journal.add("entropy", entropy, mask)
    journal.add("loss/policy", policy_loss, mask)
    journal.add("clip_fraction/policy", clipped, mask)
    journal.add("approx_kl", torch.expm1(log_ratio) - log_ratio, mask)
    journal.add("ratio", ratio, mask)
    journal.largest("ratio/max", ratio, mask)


def put_into(trainer: Logged, values: dict[str, float]) -> None:
    """Puts PPO's figures in the place of GRPO's, before TRL adds its own to `values` and writes them."""
    mode = "train" if trainer.model.training else "eval"
    ours = trainer._notes.read()
    if mode == "train" and "loss" in values:
        ours |= trainer.journal.read_clocks()
    kept = {
        name: x
        for name, x in trainer._metrics[mode].items()
        if name not in _NOT_LOGGED and not name.startswith(_NOT_LOGGED_GROUPS)
    }
    trainer._metrics[mode].clear()
    trainer._metrics[mode].update(kept | {name: [x] for name, x in ours.items()})
