"""One rollout as tensors, and what the reward says of it token by token."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.ppo import math
from pipeline.ppo.config import PPOConfig


class Rollout(NamedTuple):
    """Completions of one process with all that the update needs. B completions, T tokens (right-padded)."""

    loss_mask: Tensor  # (B, T) 1 = a token that the policy sampled, in a completion that has a score
    scores: Tensor  # (B,) weighted sum of the rewards, penalties included
    old_logprobs: Tensor  # (B, T) nats, at sampling
    ref_logprobs: Tensor  # (B, T) nats, of the reference
    values: Tensor  # (B, T) score units; 0 without a critic
    instant: Tensor | None = None  # (B, T) what the rewards paid at each token, in score units; the rest at the end


class Experience(NamedTuple):
    """What a rollout is worth. All (B, T) but one, and 0 where the loss mask is 0."""

    kl: Tensor  # nats
    rewards: Tensor  # score units, KL penalty included
    advantages: Tensor  # whitened if asked for
    returns: Tensor  # advantages + values before whitening
    unwhitened: Tensor  # the advantages before whitening, score units
    reward_scale: Tensor  # scalar by which `whiten_rewards` multiplied the token rewards, 1 without


def is_finished(completion_ids: Tensor, completion_mask: Tensor, eos_token_ids: list[int]) -> Tensor:
    """True where the last real token is one of the end-of-text ids; (B, T), (B, T) -> (B,).

    By length, never by looking for the pad id: pad and eos may be the same token.
    """
    last = (completion_mask.sum(dim=1) - 1).clamp(min=0)
    last_ids = completion_ids.gather(1, last[:, None].long()).squeeze(1)
    return torch.isin(last_ids, torch.tensor(eos_token_ids, device=completion_ids.device))


def make_experience(
    rollout: Rollout,
    config: PPOConfig,
    kl_coef: float,
    reduce_sum: math.ReduceSum = lambda t: t,
    baseline: Callable[[Tensor], Tensor] | None = None,
    advantage: math.AdvantageEstimator = math.gae,
) -> Experience:
    """Scores, KL and values -> rewards, advantages, returns, as numbered in Schulman et al. 2016 and 2017.

    Args:
        config: PPOConfig (algorithm, kl_estimator, gamma, lam, whiten_rewards, whiten_advantages).
        reduce_sum: adds a tensor over all processes; whitening spans them all.
        baseline: a function of the returns of whole completions, less what the critic expected of their prompts,
            (B,) -> (B,), that is subtracted from the advantages.
        advantage: the advantage estimator of PPO and A2C, a function like `math.gae`.
    """
    mask = rollout.loss_mask
    # 1. the price of leaving the reference
    kl = torch.where(mask.bool(), math.kl_penalty(rollout.old_logprobs, rollout.ref_logprobs, config.kl_estimator), 0)
    # 2. the reward of every token
    rewards = math.token_rewards(rollout.scores, kl, mask, kl_coef, rollout.instant)
    reward_scale = torch.ones((), device=rewards.device)
    if config.whiten_rewards:
        mean, variance = math.moments(rewards, mask, reduce_sum)
        rewards, reward_scale = math.whiten(rewards, mask, mean, variance, shift_mean=False), (variance + 1e-8).rsqrt()
    # 3. credit: how much better than expected each token was
    advantages, returns = credit(rewards, rollout.values, mask, config, advantage)
    if baseline is not None:
        first = mask.to(torch.int8).argmax(dim=1, keepdim=True)  # the first real token
        beyond = math.reward_to_go(rewards, mask, config.gamma) - rollout.values  # what the critic did not expect
        advantages = torch.where(mask.bool(), advantages - baseline(beyond.gather(1, first)[:, 0])[:, None], 0)
    # 4. one scale for every batch
    unwhitened = advantages
    if config.whiten_advantages:
        advantages = math.whiten(advantages, mask, *math.moments(advantages, mask, reduce_sum))
    return Experience(kl, rewards, advantages, returns, unwhitened, reward_scale)


def credit(
    rewards: Tensor, values: Tensor, mask: Tensor, config: PPOConfig, advantage: math.AdvantageEstimator = math.gae
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, (B, T) each, of token rewards and values (B, T); without REINFORCE's baseline."""
    if config.algorithm == "reinforce":
        returns = math.reward_to_go(rewards, mask, config.gamma)
        return returns, returns
    return advantage(rewards, values, mask, config.gamma, config.lam)
