"""The formulas of PPO as pure functions of tensors.

The contract. B = completions, T = tokens of the longest; row = one completion, column t = its t-th token.

| argument | shape | meaning |
|---|---|---|
| `mask` | (B, T) | 1 = the policy sampled this token; 0 = padding, or what a tool wrote |
| `scores` | (B,) | weighted sum of the rewards of a completion, penalties included, in score units |
| `rewards` | (B, T) | what is paid *for* token t, KL penalty included, in score units |
| `instant` | (B, T) | what the reward functions paid at token t, in score units |
| `values` | (B, T) | V of the state *before* token t, in score units; V after the last real token is 0 |
| `logprobs`, `old_logprobs`, `ref_logprobs` | (B, T) | log π(token t) now, at sampling, by the reference, in nats |
| `kl` | (B, T) | estimate of the KL against the reference at token t, in nats |
| `advantages` | (B, T) | how much better than expected token t was, in score units (or whitened) |
| `returns` | (B, T) | what the critic regresses on: advantages + values, before whitening, in score units |
| `reduce_sum` | tensor -> tensor | adds a tensor over all processes |

A masked token carries no reward, value or gradient, and the recursions pass over it as if it were not there.

An advantage estimator of one's own is a function of such tensors; `advantage: mymodule:monte_carlo` in the YAML takes
it in the place of `gae`:

    def monte_carlo(rewards, values, mask, gamma, lam):
        # What was paid from here on, less what the critic expected; both (B, T), 0 where mask is 0
        to_come, returns = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards)
        for t in reversed(range(rewards.shape[1])):
            real = mask[:, t].bool()
            to_come = torch.where(real, rewards[:, t] + gamma * to_come, to_come)
            returns[:, t] = torch.where(real, to_come, 0)
        return (returns - values) * mask, returns
"""

from collections.abc import Callable

import torch
from torch import Tensor

ReduceSum = Callable[[Tensor], Tensor]
# (rewards, values, mask, gamma, lam) -> advantages, returns
AdvantageEstimator = Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
KL_ESTIMATORS = ("k1", "k2", "k3")
# e^20 = 5e8: beyond it an exponential says nothing more, and would overflow to inf and then NaN
_LARGEST_EXPONENT = 20.0


# ---------------------------------------------------------------- means over real tokens
def whiten(x: Tensor, mask: Tensor, mean: Tensor, variance: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) on real tokens, 0 elsewhere. With `shift_mean=False` the mean is kept.

    `mean` and `variance` are scalars over the real tokens of *all* processes (see `moments`).
    """
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, 0)


def moments(x: Tensor, mask: Tensor, reduce_sum: ReduceSum = lambda t: t) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of `x` (B, T) over real tokens. `reduce_sum` adds a tensor over all processes.

    Two passes, so that a large mean does not cancel a small variance away.
    """
    real = mask.bool()
    count = reduce_sum(mask.sum().to(x.dtype)).clamp(min=1)
    mean = reduce_sum(torch.where(real, x, 0).sum()) / count
    variance = reduce_sum(torch.where(real, (x - mean) ** 2, 0).sum()) / count
    return mean, variance


# ---------------------------------------------------------------- KL penalty and rewards
def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) in nats, (B, T), from tokens sampled by the policy.

    With d = log π(a) - log π_ref(a) (Schulman 2020, "Approximating KL Divergence"):
    k1 = d (unbiased, can be negative), k2 = d²/2 (biased, low variance), k3 = exp(-d) - 1 + d (unbiased, ≥ 0).

    Raises:
        ValueError: for an unknown estimator.
    """
    d = logprobs - ref_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1((-d).clamp(max=_LARGEST_EXPONENT)) + d
    raise ValueError(f"kl_estimator is {estimator!r}; choose one of {', '.join(KL_ESTIMATORS)}.")


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float, instant: Tensor | None = None) -> Tensor:
    """Reward of each token, (B, T): r_t = instant_t - β·kl_t, and the rest of the score on the last real token.

    Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, written per token. What `instant` has paid already is not paid again
    at the end, so the rewards of a row sum to its score less the KL penalty, however it is paid out.

    Args: `scores` (B,), `kl` (B, T), `mask` (B, T), `instant` (B, T) in score units, None = nothing before the end.
    """
    real = mask.bool()
    instant = torch.zeros_like(kl) if instant is None else torch.where(real, instant, 0)
    rewards = torch.where(real, instant - kl_coef * kl, 0)
    # argmax over the flipped mask finds the last 1 of each row; rows without any real token get no reward
    last = mask.shape[1] - 1 - mask.flip(1).to(torch.int8).argmax(dim=1)
    rest = torch.where(mask.any(dim=1), scores - instant.sum(dim=1), 0)
    rewards[torch.arange(len(scores), device=scores.device), last] += rest
    return rewards


def adapt_kl_coef(kl_coef: float, kl: float, target: float, horizon: float, episodes: int) -> float:
    """Next coefficient of the adaptive controller: β ← β (1 + clip(kl/target - 1, -0.2, 0.2) · episodes/horizon).

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2. `kl` and `target` in nats per sequence; `horizon` in episodes.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * episodes / horizon)


# ---------------------------------------------------------------- returns and advantages
def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t = Σ_{l≥0} γ^l r_{t+l} over real tokens. (B, T). Sutton & Barto 2018, eq. 3.8."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, lam=1.0)[0]


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: A_t = δ_t + γλ A_{t+1}; the λ-return is R_t = A_t + V_t.

    Schulman et al. 2016 (arXiv 1506.02438), eq. 11-16. The recursion runs over real tokens only.

    Args:
        rewards, values, mask: (B, T). gamma, lam: in [0, 1].

    Returns:
        advantages (B, T), returns (B, T); both 0 where mask is 0.
    """
    real = mask.bool()
    # what stands at masked positions must not count, NaN included: 0 * NaN would still be NaN
    rewards, values = torch.where(real, rewards, 0), torch.where(real, values, 0)
    advantages = torch.zeros_like(rewards)
    next_advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_advantage = torch.where(real[:, t], advantage, next_advantage)
        next_value = torch.where(real[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(real[:, t], advantage, 0)
    return advantages, advantages + values


def leave_one_out(totals: Tensor, counts: Tensor, group_size: int) -> Tensor:
    """Mean of the totals of the *other* completions of the same prompt; 0 where there is no other. (B,)

    Kool, van Hoof, Welling 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!", eq. 6. It does not depend on the
    completion itself, so it takes nothing from the expected gradient.

    Args: totals (B,), counts (B,) bool = has a score; rows of one prompt stand together, `group_size` of them.
    """
    groups, counted = torch.where(counts, totals, 0).view(-1, group_size), counts.view(-1, group_size)
    others = groups.sum(dim=1, keepdim=True) - groups
    number = counted.sum(dim=1, keepdim=True) - counted.to(groups.dtype)
    return torch.where(number > 0, others / number.clamp(min=1), 0).flatten()


# ---------------------------------------------------------------- losses, one number per token
def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A) with ρ = exp(log π - log π_old).

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7, negated. All tensors (B, T). With both ε infinite nothing is
    clipped, which is eq. 6; its gradient at ρ = 1 is the policy gradient of REINFORCE and A2C, -A ∇log π.

    Returns:
        loss, ratio ρ, clipped (bool: the clip is what the minimum chose, so the token has no gradient); each (B, T).
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(max=_LARGEST_EXPONENT))
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - epsilon_low, 1.0 + epsilon_high) * advantages
    return torch.max(unclipped, clipped), ratio.detach(), (clipped > unclipped).detach()


def truncated_weight(logprobs: Tensor, sampled_logprobs: Tensor, cap: float) -> Tensor:
    """min(c, π / π_sampled): importance weight of each token that an older policy sampled. (B, T)

    Espeholt et al. 2018 (arXiv 1802.01561), ρ_t in section 4.1. Truncation bounds the variance at the price of a bias.
    """
    return torch.exp((logprobs - sampled_logprobs).clamp(max=_LARGEST_EXPONENT)).clamp(max=cap)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float | None) -> tuple[Tensor, Tensor]:
    """½ max((V - R)², (clip(V, V_old ± c) - R)²). All tensors (B, T); `cliprange` None means no clipping.

    The form of OpenAI's baselines and of TRL 1.12 (Stiennon et al. 2020, arXiv 2009.01325, use the same).

    Returns:
        loss (B, T), clipped (bool, (B, T)).
    """
    unclipped = (values - returns).square()
    if cliprange is None:
        return unclipped / 2, torch.zeros_like(unclipped, dtype=torch.bool)
    clipped_values = old_values + (values - old_values).clamp(-cliprange, cliprange)
    clipped = (clipped_values - returns).square()
    return torch.max(unclipped, clipped) / 2, (clipped > unclipped).detach()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce_sum: ReduceSum = lambda t: t) -> Tensor:
    """1 - Var(R - V) / Var(R) over real tokens of all processes: 1 = perfect critic, 0 = no better than the mean.

    0 when the returns do not vary at all (there is nothing to explain).
    """
    _, residual = moments(returns - values, mask, reduce_sum)
    _, total = moments(returns, mask, reduce_sum)
    return torch.where(total > 1e-12, 1 - residual / total.clamp(min=1e-12), torch.zeros_like(total))
