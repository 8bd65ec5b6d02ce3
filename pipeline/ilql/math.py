"""The formulas of implicit language Q-learning as pure functions of tensors.

Snell et al. 2022, arXiv 2206.11871, puts together IQL (Kostrikov et al. 2021, arXiv 2110.06169) and CQL (Kumar et al.
2020, arXiv 2006.04779) for tokens. Conventions are those of pipeline/ppo/math.py: a row is a completion, column t its
t-th token; `mask` is 1 for real tokens, which stand without a gap from column 0; `rewards[:, t]` is paid for token t;
`values[:, t]` is V of the state before it, and V after the last real token is 0. All but logits are in score units.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def td_targets(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float = 0.0) -> Tensor:
    """What Q of each token shall be: G_t = r_t + γ ((1 - λ) V(s_{t+1}) + λ G_{t+1}), with 0 after the end and at
    padding. Args and result (B, T).

    With λ = 0 that is r_t + γ V(s_{t+1}), IQL's eq. 6 and the paper's. With λ = 1 it is what the completion did earn
    (`returns`): it is learned sooner where the reward comes late, and knows nothing of the better endings that other
    completions had.
    """
    found, following = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        real = mask[:, t].bool()
        found[:, t] = torch.where(real, rewards[:, t] + gamma * following, 0)
        following = torch.where(real, (1 - lam) * values[:, t] + lam * found[:, t], 0)
    return found


def td_loss(q: Tensor, targets: Tensor) -> Tensor:
    """(Q - target)² of each token, (B, T). IQL, eq. 6; the gradient goes into Q alone."""
    return (q - targets.detach()).square()


def expectile_loss(q: Tensor, values: Tensor, tau: float) -> Tensor:
    """L_τ(Q - V) of each token, (B, T), with L_τ(u) = |τ - 1(u < 0)| u². IQL, eq. 5; the gradient goes into V alone.

    At τ = 0.5 it is half the squared error, and the best V is the mean of Q under the data; as τ goes to 1, V goes to
    the largest Q of those tokens that the data has.
    """
    difference = q.detach() - values
    return torch.where(difference < 0, 1 - tau, tau) * difference.square()


def conservative_loss(q: Tensor, ids: Tensor) -> Tensor:
    """log Σ_a exp Q(s, a) - Q(s, a_t) of each token, (B, T): the cross-entropy of softmax(Q) and the data's token.

    CQL, the first part of eq. 4: tokens that the data does not have are pushed down.

    Args: q (B, T, V), ids (B, T).
    """
    return q.logsumexp(dim=-1) - taken(q, ids)


def taken(q: Tensor, ids: Tensor) -> Tensor:
    """Q of the data's tokens: q (B, T, V), ids (B, T) -> (B, T)."""
    return q.gather(-1, ids[..., None]).squeeze(-1)


def returns(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """What is still earned from each token on: R_t = r_t + γ R_{t+1}, 0 after the end; 0 at padding. (B, T)."""
    return td_targets(rewards, torch.zeros_like(rewards), mask, gamma, lam=1.0)


@torch.no_grad()
def polyak(targets: Iterable[Tensor], weights: Iterable[Tensor], rate: float) -> None:
    """target ← (1 - rate) · target + rate · weight, in place. Lillicrap et al., arXiv 1509.02971, algorithm 1."""
    for target, weight in zip(targets, weights, strict=True):
        target.lerp_(weight.to(target.dtype), rate)


def shifted(logits: Tensor, q: Tensor, values: Tensor, beta: float) -> Tensor:
    """log π + β (Q - V), not normalised: what is decoded from (Snell et al. 2022).

    V is the same for all tokens of a state, so that it changes no probability. Args: logits and q (B, T, V),
    values (B, T).
    """
    return logits + (beta * (q - values[..., None])).to(logits.dtype)
