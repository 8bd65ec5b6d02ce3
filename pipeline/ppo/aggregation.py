"""How the scores of several rewards become one, and what each of them had to do with the advantages."""

from typing import NamedTuple

import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from pipeline.ppo import math
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.experience import Experience, Rollout, credit

_EPSILON = 1e-4  # TRL's, beside a standard deviation


class Paid(NamedTuple):
    """What each reward pays for the completions of a rollout. B completions, T tokens, F rewards."""

    scores: Tensor  # (B, F) what it adds to a completion's score, weight included; 0 where it has none
    instant: dict[int, Tensor]  # place of a reward that pays per token -> (B, T) what it pays at each of them

    @property
    def at_tokens(self) -> Tensor | None:
        """What all of them pay at each token, (B, T); None when no reward pays per token."""
        return torch.stack(list(self.instant.values())).sum(dim=0) if self.instant else None


def scale(scores_per_reward: Tensor, weights: Tensor, group_size: int | None) -> tuple[Tensor, Tensor]:
    """What each reward adds to the score: its score times its weight, normalised first where `group_size` is given.

        w_k (s_k - mean_k) / (std_k + 1e-4)

    with mean and (unbiased) standard deviation of the reward's own scores over the completions of the same prompt, or
    over all where there is one of each prompt. A dense and a sparse reward, or one of tens and one of tenths, then
    weigh what their weights say. Where a reward says the same of all it adds nothing.

    What is paid at tokens is multiplied by w_k / (std_k + 1e-4) with the standard deviation over all completions: that
    of a few whose scores are alike by chance would blow up payments that cancel out. The rest of a score is paid at
    the end, as ever.

    Source: Liu et al. 2026, "GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL
    Optimization" (arXiv 2601.05242), as in TRL's `multi_objective_aggregation: normalize_then_sum`. Their second step,
    normalising the sum over the batch, is `whiten_advantages`.

    Args:
        scores_per_reward: (N, F) of all processes, NaN for a missing one; rows of one prompt stand together.
        weights: (F,). group_size: completions of one prompt; None: nothing is normalised.

    Returns:
        scores (N, F), 0 where missing; factors (F,) by which payments at tokens are multiplied.
    """
    if group_size is None:
        return (scores_per_reward * weights).nan_to_num(0.0), weights
    size = group_size if group_size > 1 else len(scores_per_reward)
    grouped = scores_per_reward.view(-1, size, len(weights))
    mean = grouped.nanmean(dim=1, keepdim=True)
    std, std_of_all = (nanstd(x, dim=-2, keepdim=True).nan_to_num(0.0) for x in (grouped, scores_per_reward))
    scores = (grouped - mean) * weights / (std + _EPSILON)
    factors = torch.where(std_of_all > _EPSILON, weights / (std_of_all + _EPSILON), 0.0)
    return scores.reshape(scores_per_reward.shape).nan_to_num(0.0), factors.squeeze(0)


def advantage_shares(
    paid: Paid,
    rollout: Rollout,
    experience: Experience,
    config: PPOConfig,
    kl_coef: float,
    advantage: math.AdvantageEstimator = math.gae,
    reduce_sum: math.ReduceSum = lambda t: t,
) -> Tensor:
    """Which share of the variance of the advantages came of each reward: Cov(A_k, A) / Var(A) over real tokens.

    A_k is what the advantage estimator makes of the payments of reward k alone, without a critic. Estimators are
    linear in rewards and values, so the A_k, the same of the KL penalty, and what the critic (or baseline) and the
    missing-EOS penalty take off add up to A, and the shares to 1. One below 0 worked against the others.

    Returns: (F + 2,): the rewards, the KL penalty, the rest. NaN where the advantages do not vary.
    """
    mask, no_kl = rollout.loss_mask, torch.zeros_like(experience.kl)
    alone = [
        math.token_rewards(scores, no_kl, mask, 0.0, paid.instant.get(k)) for k, scores in enumerate(paid.scores.T)
    ]
    alone.append(-kl_coef * experience.kl)
    whole = experience.unwhitened
    variance = covariance(whole, whole, mask, reduce_sum)
    shares = [
        experience.reward_scale * covariance(credit(each, no_kl, mask, config, advantage)[0], whole, mask, reduce_sum)
        for each in alone
    ]
    found = torch.stack(shares) / torch.where(variance > 1e-12, variance, torch.nan)
    return torch.cat([found, 1 - found.sum()[None]])


def covariance(x: Tensor, y: Tensor, mask: Tensor, reduce_sum: math.ReduceSum = lambda t: t) -> Tensor:
    """Of `x` and `y` (B, T) over the real tokens of all processes, biased like `math.moments`."""
    (mean_x, _), (mean_y, _) = math.moments(x, mask, reduce_sum), math.moments(y, mask, reduce_sum)
    return math.moments((x - mean_x) * (y - mean_y), mask, reduce_sum)[0]


def share_names(rewards: list[str]) -> list[str]:
    """What the shares are called in the log, in the order of `advantage_shares`."""
    return [*(f"advantage/{name}" for name in rewards), "advantage_kl", "advantage_rest"]
