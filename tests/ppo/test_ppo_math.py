"""Formulas of PPO against numbers worked out by hand, identities and gradients. float64 throughout."""

import math as m

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.ppo import math

torch.set_default_dtype(torch.float32)


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


ONES = t([1, 1, 1])


# ---------------------------------------------------------------- GAE and its special cases
def test_gae_worked_example():
    # δ = [0, 0, .5]; A_2 = .5, A_1 = .95·.5 = .475, A_0 = .95·.475 = .45125; R = A + V
    advantages, returns = math.gae(t([0, 0, 1]), t([0.5, 0.5, 0.5]), ONES, gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, t([0.45125, 0.475, 0.5]), atol=1e-12, rtol=0)
    torch.testing.assert_close(returns, t([0.95125, 0.975, 1.0]), atol=1e-12, rtol=0)


def test_gae_with_discount_by_hand():
    # γ=.9, λ=.5, r=[1,2,3], V=[.5,1,2]: δ_2 = 3-2 = 1; δ_1 = 2+.9·2-1 = 2.8; δ_0 = 1+.9·1-.5 = 1.4
    # A_2 = 1; A_1 = 2.8+.45·1 = 3.25; A_0 = 1.4+.45·3.25 = 2.8625
    advantages, returns = math.gae(t([1, 2, 3]), t([0.5, 1, 2]), ONES, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, t([2.8625, 3.25, 1.0]), atol=1e-12, rtol=0)
    torch.testing.assert_close(returns, t([3.3625, 4.25, 3.0]), atol=1e-12, rtol=0)


def test_td_error_and_reward_to_go_by_hand():
    torch.testing.assert_close(math.gae(t([1, 2, 3]), t([0.5, 1, 2]), ONES, 0.9, 0.0)[0], t([1.4, 2.8, 1.0]))
    # G_2 = 3, G_1 = 2+.9·3 = 4.7, G_0 = 1+.9·4.7 = 5.23
    torch.testing.assert_close(math.reward_to_go(t([1, 2, 3]), ONES, 0.9), t([5.23, 4.7, 3.0]))


def test_lambda_returns_by_hand():
    # γ=.9, λ=.5, r=[1,2,3], V=[.5,1,2]: R_2 = 3; R_1 = 2+.9(.5·2+.5·3) = 4.25; R_0 = 1+.9(.5·1+.5·4.25) = 3.3625
    returns = math.gae(t([1, 2, 3]), t([0.5, 1, 2]), ONES, 0.9, 0.5)[1]
    torch.testing.assert_close(returns, t([3.3625, 4.25, 3.0]), atol=1e-12, rtol=0)


def test_gae_passes_over_masked_tokens():
    # the middle token is a tool's: the result at the real ones is that of the sequence without it
    advantages, returns = math.gae(t([1, 99, 3]), t([0.5, float("nan"), 2]), t([1, 0, 1]), gamma=0.9, lam=0.5)
    # δ_2 = 1; δ_0 = 1+.9·2-.5 = 2.3; A_0 = 2.3+.45·1 = 2.75
    torch.testing.assert_close(advantages, t([2.75, 0, 1.0]), atol=1e-12, rtol=0)
    torch.testing.assert_close(returns, t([3.25, 0, 3.0]), atol=1e-12, rtol=0)


finite = st.floats(-1e3, 1e3, width=32)


@st.composite
def batches(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    rewards, values = (torch.tensor(draw(arrays(np.float64, shape, elements=finite))) for _ in range(2))
    lengths = draw(st.lists(st.integers(0, shape[1]), min_size=shape[0], max_size=shape[0]))
    mask = (torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]).double()
    return rewards, values, mask


@settings(deadline=None, max_examples=60)
@given(batches(), st.floats(0, 1), st.floats(0, 1))
def test_gae_identities(batch, gamma, lam):
    rewards, values, mask = batch
    to_go = math.reward_to_go(rewards, mask, gamma)
    monte_carlo, _ = math.gae(rewards, values, mask, gamma, 1.0)
    torch.testing.assert_close(monte_carlo, torch.where(mask.bool(), to_go - values, 0), atol=1e-8, rtol=1e-8)
    # straight from the definition: A_t = Σ_l (γλ)^l δ_{t+l}
    advantages, returns = math.gae(rewards, values, mask, gamma, lam)
    for b in range(len(mask)):
        n = int(mask[b].sum())
        v = torch.cat([values[b, :n], torch.zeros(1, dtype=torch.float64)])
        delta = rewards[b, :n] + gamma * v[1:] - v[:-1]
        for i in range(n):
            expected = sum((gamma * lam) ** k * delta[i + k] for k in range(n - i))
            assert advantages[b, i].item() == pytest.approx(float(expected), rel=1e-8, abs=1e-8)
    assert torch.isfinite(advantages).all() and torch.isfinite(returns).all()
    assert (advantages[mask == 0] == 0).all() and (returns[mask == 0] == 0).all()


def test_padding_and_batch_order_change_nothing():
    rewards, values, mask = t([1, 2, 3], [4, 5, 0]), t([0.1, 0.2, 0.3], [0.4, 0.5, 0]), t([1, 1, 1], [1, 1, 0])
    plain = math.gae(rewards, values, mask, 0.9, 0.8)
    pad = torch.full((2, 2), 1e9, dtype=torch.float64)
    padded = math.gae(
        torch.cat([rewards, pad], 1), torch.cat([values, pad], 1), torch.cat([mask, 0 * pad], 1), 0.9, 0.8
    )
    swapped = math.gae(rewards.flip(0), values.flip(0), mask.flip(0), 0.9, 0.8)
    for a, b, c in zip(plain, padded, swapped, strict=True):
        assert torch.equal(a, b[:, :3]) and torch.equal(a, c.flip(0))


# ---------------------------------------------------------------- KL
def test_kl_estimators_by_hand():
    # π(a) = .5, π_ref(a) = .25: d = log 2; k2 = (log 2)²/2; k3 = .25/.5 - 1 + log 2 = log 2 - .5
    logprobs, ref = t([m.log(0.5)]), t([m.log(0.25)])
    for estimator, expected in {"k1": 0.69314718056, "k2": 0.24022650696, "k3": 0.19314718056}.items():
        assert math.kl_penalty(logprobs, ref, estimator).item() == pytest.approx(expected, abs=1e-10)


def test_kl_expectations_on_a_five_token_toy():
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    q = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    exact = (p * (p.log() - q.log())).sum()
    for estimator in ("k1", "k3"):
        assert (p * math.kl_penalty(p.log(), q.log(), estimator)).sum() == pytest.approx(exact.item(), abs=1e-12)
    assert (math.kl_penalty(p.log(), q.log(), "k3") >= 0).all()


def test_unknown_kl_estimator_is_named():
    with pytest.raises(ValueError, match="k9"):
        math.kl_penalty(ONES, ONES, "k9")


def test_adaptive_kl_coef_by_hand():
    # kl/target - 1 = .1 inside the clip: 0.2·(1 + .1·64/640) = .202; far above: .2·(1 + .2·.1) = .204; below: .196
    assert math.adapt_kl_coef(0.2, 6.6, 6.0, 640, 64) == pytest.approx(0.202)
    assert math.adapt_kl_coef(0.2, 60.0, 6.0, 640, 64) == pytest.approx(0.204)
    assert math.adapt_kl_coef(0.2, 0.0, 6.0, 640, 64) == pytest.approx(0.196)


def test_score_lands_on_the_last_real_token():
    kl, mask = t([0.1, 0.2, 0.3], [0.1, 0.2, 9.0]), t([1, 1, 1], [1, 1, 0])
    rewards = math.token_rewards(torch.tensor([1.0, 2.0], dtype=torch.float64), kl, mask, kl_coef=0.5)
    torch.testing.assert_close(rewards, t([-0.05, -0.1, 0.85], [-0.05, 1.9, 0]))


def test_a_row_without_real_tokens_earns_nothing():
    rewards = math.token_rewards(torch.tensor([5.0]), torch.ones(1, 3), torch.zeros(1, 3), kl_coef=0.5)
    assert torch.equal(rewards, torch.zeros(1, 3))


# ---------------------------------------------------------------- whatever comes: identities and no NaN
magnitudes = st.sampled_from([1e-6, 1.0, 1e3, 1e6])


@st.composite
def two_processes(draw):
    """Two batches with masks, as two processes hold them; at least two real tokens that differ."""
    parts = [draw(batches()) for _ in range(2)]
    real = torch.cat([r[k.bool()] for r, _, k in parts])
    assume(len(real) > 1 and real.std() > 1e-2)
    return parts


@settings(deadline=None, max_examples=60)
@given(two_processes())
def test_whitened_tokens_of_all_processes_have_mean_0_and_variance_1(parts):
    # moments of all of them together, as `reduce_sum` gives them to both (real processes: trap 13)
    pooled = (torch.cat([r.flatten() for r, _, _ in parts])[None], torch.cat([k.flatten() for _, _, k in parts])[None])
    mean, variance = math.moments(*pooled)
    whitened = torch.cat([math.whiten(r, k, mean, variance)[k.bool()] for r, _, k in parts])
    assert whitened.mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened.var(unbiased=False).item() == pytest.approx(1, abs=1e-3)


@settings(deadline=None, max_examples=60)
@given(batches(), magnitudes)
def test_kl_estimators_identities(batch, size):
    logprobs, ref, _ = (-x.abs() * size / 1e3 for x in batch)
    for estimator in math.KL_ESTIMATORS:
        assert (math.kl_penalty(logprobs, logprobs, estimator) == 0).all()  # equal policies
    assert (math.kl_penalty(logprobs, ref, "k3") >= -1e-9 * size).all()
    assert (math.kl_penalty(logprobs, ref, "k2") >= 0).all()


@settings(deadline=None, max_examples=100)
@given(batches(), batches(), magnitudes, st.floats(0, 1), st.floats(0, 1), st.sampled_from(math.KL_ESTIMATORS))
def test_finite_input_gives_finite_output(batch, other, size, gamma, lam, estimator):
    """In float32, as in training; log-probabilities down to -1e6 nats, scores up to ±1e6."""
    rewards, values, mask = (x.float() for x in batch)
    shape = rewards.shape
    logprobs, ref = -rewards.abs() * size / 1e3, -values.abs() * size / 1e3
    scores = torch.zeros(shape[0]) + rewards[:, 0] * size / 1e3
    kl = math.kl_penalty(logprobs, ref, estimator)
    paid = math.token_rewards(scores, kl, mask, 0.1)
    advantages, returns = math.gae(paid, values, mask, gamma, lam)
    found = [kl, paid, advantages, returns, math.reward_to_go(paid, mask, gamma)]
    found.append(math.explained_variance(values, values * 2, mask))
    if estimator == "k1":  # a k3 of 5e8 nats squared has no place in float32
        found.append(math.whiten(advantages, mask, *math.moments(advantages, mask)))
        for eps in (0.2, torch.inf):
            loss, ratio, _ = math.policy_loss(logprobs, ref, found[-1], eps, eps)
            found += [loss, ratio]
        found += [math.value_loss(values, paid, returns, c)[0] for c in (0.2, None)]
    assert all(torch.isfinite(x).all() for x in found)


# ---------------------------------------------------------------- losses
def test_policy_loss_by_hand():
    # ρ = [1.5, 1.5, .5, .5, 1.1], A = [1, -1, 1, -1, 2], ε = .2
    # -min(ρA, clip(ρ)A): -1.2 (clipped), 1.5, -.5, .8 (clipped), -2.2
    ratio = t([1.5, 1.5, 0.5, 0.5, 1.1])
    loss, r, clipped = math.policy_loss(ratio.log(), torch.zeros_like(ratio), t([1, -1, 1, -1, 2]), 0.2, 0.2)
    torch.testing.assert_close(loss, t([-1.2, 1.5, -0.5, 0.8, -2.2]))
    torch.testing.assert_close(r, ratio)
    assert clipped.tolist() == [[True, False, False, True, False]]


def test_clipped_tokens_have_exactly_zero_gradient():
    logprobs = t([1.5, 0.5, 1.0]).log().requires_grad_()
    loss, _, clipped = math.policy_loss(logprobs, torch.zeros(1, 3, dtype=torch.float64), t([1, -1, 1]), 0.2, 0.2)
    loss.sum().backward()
    # the third: d(-ρA)/d log π = -ρA = -1
    assert logprobs.grad.tolist() == [[0.0, 0.0, -1.0]] and clipped.tolist() == [[True, True, False]]


def test_value_loss_by_hand():
    # V=2, V_old=1, R=1.5, c=.2: unclipped .25, clipped (1.2-1.5)² = .09 -> ½·.25
    # V=3, V_old=1, R=4: unclipped 1, clipped (1.2-4)² = 7.84 -> ½·7.84
    loss, clipped = math.value_loss(t([2, 3]), t([1, 1]), t([1.5, 4]), 0.2)
    torch.testing.assert_close(loss, t([0.125, 3.92]))
    assert clipped.tolist() == [[False, True]]
    torch.testing.assert_close(math.value_loss(t([2, 3]), t([1, 1]), t([1.5, 4]), None)[0], t([0.125, 0.5]))


def test_gradients_of_both_losses():
    generator = torch.Generator().manual_seed(0)
    x, old, target = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: math.policy_loss(x, old, target, 0.2, 0.3)[0], x)
    assert torch.autograd.gradcheck(lambda x: math.value_loss(x, old, target, 0.2)[0], x)


# ---------------------------------------------------------------- whitening and statistics
def test_whitening_over_real_tokens_only():
    # real tokens 1, 3, 5, 7: mean 4, variance 5
    x, mask = t([1, 3, 1e6], [5, 7, -1e6]), t([1, 1, 0], [1, 1, 0])
    mean, variance = math.moments(x, mask)
    assert (mean.item(), variance.item()) == (4.0, 5.0)
    s = m.sqrt(5 + 1e-8)
    torch.testing.assert_close(math.whiten(x, mask, mean, variance), t([-3 / s, -1 / s, 0], [1 / s, 3 / s, 0]))
    kept = math.whiten(x, mask, mean, variance, shift_mean=False)
    torch.testing.assert_close(kept, t([4 - 3 / s, 4 - 1 / s, 0], [4 + 1 / s, 4 + 3 / s, 0]))


def test_moments_survive_a_large_mean():
    # float32, values 1e4 ± 1: variance 1 would vanish in E[x²] - E[x]²
    x = torch.tensor([[9999.0, 10001.0]])
    assert math.moments(x, torch.ones(1, 2))[1].item() == 1.0


def test_explained_variance_by_hand():
    # R = [0, 2], V = [0, 1]: R - V = [0, 1], variances 1 and 1/4
    assert math.explained_variance(t([0, 1]), t([0, 2]), t([1, 1])).item() == pytest.approx(0.75)
    assert math.explained_variance(t([0, 1]), t([2, 2]), t([1, 1])).item() == 0.0
