"""PPO once more, in plain NumPy and float64: a second opinion on `pipeline/ppo`, written from the papers alone.

One sequence at a time, so there is no padding and no attention mask. Everything is slow and literal: the gradient is a
finite difference. Any trained matrix may carry a leading axis of K variations, and what depends on it then has that
axis too (the `...` in shapes): so all entries of a matrix are tried in one pass.

P prompt tokens, T sampled tokens of one completion, N sampled tokens of all. d width, L positions, V tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import ndarray

Weights = dict[str, ndarray]


class Settings(NamedTuple):
    """Of PPO, under the names of PPOConfig."""

    temperature: float = 1.0
    kl_coef: float = 0.3
    kl_estimator: str = "k1"
    missing_eos_penalty: float | None = None
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    gamma: float = 1.0
    lam: float = 0.95
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    cliprange_value: float | None = 0.2
    vf_coef: float = 0.5
    entropy_coef: float = 0.0


class Sequence(NamedTuple):
    """One prompt and its completion. `columns` (T,) are the places in `completion` that the policy sampled."""

    prompt: list[int]
    completion: list[int]
    columns: list[int]
    score: float


class Experience(NamedTuple):
    """What was seen of one sequence at sampling; each (T,)."""

    old_logprobs: ndarray
    ref_logprobs: ndarray
    values: ndarray
    kl: ndarray
    rewards: ndarray
    advantages: ndarray
    returns: ndarray


class Loss(NamedTuple):
    """Means over all N tokens, shape (...); and which tokens each clip chose, (..., N)."""

    total: ndarray
    policy: ndarray
    value: ndarray
    entropy: ndarray
    policy_clipped: ndarray
    value_clipped: ndarray


# ---------------------------------------------------------------- a Llama with LoRA
class Llama(NamedTuple):
    """The frozen base. `weights`: embedding (V, d), norm (d,), head (V, d) unless tied, and of each layer i the linear
    ones `i.q_proj` … `i.down_proj` (out, in) and the norms `i.before_attention`, `i.before_mlp` (d,).

    An adapter is a dict of `i.q_proj.A` (r, in), `i.q_proj.B` (out, r) and so on; None is the base alone.
    """

    weights: Weights
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float
    norm_eps: float
    lora_scale: float  # α/r


def transposed(x: ndarray) -> ndarray:
    return np.swapaxes(x, -1, -2)


def log_softmax(x: ndarray) -> ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def rms_norm(x: ndarray, weight: ndarray, eps: float) -> ndarray:
    """x / RMS(x) · g. Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4; eps under the root as in Llama."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def linear(model: Llama, adapter: Weights | None, name: str, x: ndarray) -> ndarray:
    """x W^T + α/r · x A^T B^T. Hu et al. 2021 (arXiv 2106.09685), eq. 3."""
    y = np.tensordot(x, model.weights[name], axes=(-1, -1))
    if adapter is None:
        return y
    return y + model.lora_scale * (x @ transposed(adapter[f"{name}.A"])) @ transposed(adapter[f"{name}.B"])


def rotate(x: ndarray, theta: float) -> ndarray:
    """Turns pair i of the position m by the angle m·θ^(-2i/D). (..., L, heads, D)

    Su et al. 2021 (arXiv 2104.09864), section 3.2.2, as a product of complex numbers. The pairs are (i, i + D/2): the
    order in which Llama's weights come.
    """
    length, half = x.shape[-3], x.shape[-1] // 2
    angle = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)


def attention(model: Llama, adapter: Weights | None, layer: int, x: ndarray) -> ndarray:
    """Causal, softmax(q k^T / √D) v; each key and value head serves a group of neighboring query heads.

    Vaswani et al. 2017 (arXiv 1706.03762), eq. 1; Ainslie et al. 2023 (arXiv 2305.13245), section 2.2.
    """

    def heads(name: str, count: int) -> ndarray:
        y = linear(model, adapter, f"{layer}.{name}", x)
        return y.reshape(*y.shape[:-1], count, -1)  # (..., L, heads, D)

    group = model.num_heads // model.num_kv_heads
    q = rotate(heads("q_proj", model.num_heads), model.rope_theta)
    k = rotate(heads("k_proj", model.num_kv_heads), model.rope_theta).repeat(group, axis=-2)
    v = heads("v_proj", model.num_kv_heads).repeat(group, axis=-2)
    similarity = np.einsum("...ihd,...jhd->...hij", q, k) / np.sqrt(q.shape[-1])
    future = np.triu(np.ones(similarity.shape[-2:], dtype=bool), k=1)
    share = np.exp(log_softmax(np.where(future, -np.inf, similarity)))
    mixed = np.einsum("...hij,...jhd->...ihd", share, v)
    return linear(model, adapter, f"{layer}.o_proj", mixed.reshape(*mixed.shape[:-2], -1))


def swiglu(model: Llama, adapter: Weights | None, layer: int, x: ndarray) -> ndarray:
    """(Swish(x W) * x V) W2. Shazeer 2020 (arXiv 2002.05202), eq. 6."""
    gate = linear(model, adapter, f"{layer}.gate_proj", x)
    up = linear(model, adapter, f"{layer}.up_proj", x)
    return linear(model, adapter, f"{layer}.down_proj", gate / (1 + np.exp(-gate)) * up)


def states(model: Llama, adapter: Weights | None, sequence: Sequence) -> ndarray:
    """The last hidden state before each sampled token. (..., T, d)"""
    x = model.weights["embedding"][sequence.prompt + sequence.completion]
    for i in range(model.num_layers):
        x = x + attention(model, adapter, i, rms_norm(x, model.weights[f"{i}.before_attention"], model.norm_eps))
        x = x + swiglu(model, adapter, i, rms_norm(x, model.weights[f"{i}.before_mlp"], model.norm_eps))
    before = len(sequence.prompt) - 1 + np.array(sequence.columns)
    return rms_norm(x, model.weights["norm"], model.norm_eps)[..., before, :]


def logprobs_and_entropy(model: Llama, adapter: Weights | None, sequence: Sequence, temperature: float):
    """log π(a_t) of the sampled tokens and -Σ_a π(a) log π(a), in nats, at the sampling temperature; each (..., T)."""
    head = model.weights.get("head", model.weights["embedding"])
    each = log_softmax(np.tensordot(states(model, adapter, sequence), head, axes=(-1, -1)) / temperature)
    sampled = np.array(sequence.completion)[sequence.columns]
    return each[..., np.arange(len(sampled)), sampled], -(np.exp(each) * each).sum(axis=-1)


def values(model: Llama, critic: Weights, sequence: Sequence) -> ndarray:
    """w·h + b of the state before each sampled token. (..., T)"""
    v = states(model, critic, sequence) @ transposed(critic["value_head.weight"])
    return v[..., 0] + critic["value_head.bias"]


# ---------------------------------------------------------------- what a rollout is worth
def kl_penalty(logprobs: ndarray, ref_logprobs: ndarray, estimator: str) -> ndarray:
    """With r = π_ref/π: k1 = -log r, k2 = (log r)²/2, k3 = r - 1 - log r.

    Schulman 2020, "Approximating KL Divergence".
    """
    log_r = ref_logprobs - logprobs
    return {"k1": -log_r, "k2": log_r**2 / 2, "k3": np.exp(log_r) - 1 - log_r}[estimator]


def token_rewards(sequence: Sequence, kl: ndarray, eos: int, s: Settings) -> ndarray:
    """-β kl_t, plus the score at the last token (Ziegler et al. 2019, arXiv 1909.08593, eq. 2). (T,)

    A completion that does not end with the end-of-text token pays for it (Stiennon et al. 2020, arXiv 2009.01325).
    """
    cut = sequence.completion[-1] != eos
    rewards = -s.kl_coef * kl
    rewards[-1] += sequence.score - (s.missing_eos_penalty or 0.0) * cut
    return rewards


def gae(rewards: ndarray, values_: ndarray, gamma: float, lam: float) -> ndarray:
    """A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} - V_t and V = 0 after the end. (T,)

    Schulman et al. 2016 (arXiv 1506.02438), eq. 16, as the double sum that it is.
    """
    delta = rewards + gamma * np.append(values_[1:], 0.0) - values_
    length = len(rewards)
    return np.array([sum((gamma * lam) ** (i - t) * delta[i] for i in range(t, length)) for t in range(length)])


def whitened(rows: list[ndarray], keep_mean: bool = False) -> list[ndarray]:
    """(x - mean)/std over the tokens of all rows together (biased variance, plus 1e-8 under the root)."""
    x = np.concatenate(rows)
    scaled = [(row - x.mean()) / np.sqrt(x.var() + 1e-8) for row in rows]
    return [row + x.mean() for row in scaled] if keep_mean else scaled


def experience(
    model: Llama, sequences: list[Sequence], policy: Weights, reference: Weights | None, critic: Weights, eos, s
) -> list[Experience]:
    """Everything that the update needs of the `sequences`, which `policy` sampled."""
    old = [logprobs_and_entropy(model, policy, x, s.temperature)[0] for x in sequences]
    ref = [logprobs_and_entropy(model, reference, x, s.temperature)[0] for x in sequences]
    v = [values(model, critic, x) for x in sequences]
    kl = [kl_penalty(*pair, s.kl_estimator) for pair in zip(old, ref, strict=True)]
    rewards = [token_rewards(x, each, eos, s) for x, each in zip(sequences, kl, strict=True)]
    if s.whiten_rewards:
        rewards = whitened(rewards, keep_mean=True)
    advantages = [gae(*pair, s.gamma, s.lam) for pair in zip(rewards, v, strict=True)]
    returns = [a + b for a, b in zip(advantages, v, strict=True)]
    if s.whiten_advantages:
        advantages = whitened(advantages)
    return [Experience(*row) for row in zip(old, ref, v, kl, rewards, advantages, returns, strict=True)]


# ---------------------------------------------------------------- the update
def policy_loss(logprobs: ndarray, e: Experience, s: Settings) -> tuple[ndarray, ndarray]:
    """-min(ρ A, clip(ρ, 1-ε, 1+ε) A), and where the clip was the smaller.

    Schulman et al. 2017 (arXiv 1707.06347), eq. 7.
    """
    ratio = np.exp(logprobs - e.old_logprobs)
    free, clipped = ratio * e.advantages, np.clip(ratio, 1 - s.epsilon, 1 + s.epsilon_high) * e.advantages
    return -np.minimum(free, clipped), clipped < free


def value_loss(v: ndarray, e: Experience, s: Settings) -> tuple[ndarray, ndarray]:
    """½ max((V - R)², (clip(V, V_old - c, V_old + c) - R)²), and where the clip was the larger.

    The squared error of Schulman et al. 2017, eq. 9, with the clip of the code that came with it.
    """
    c = np.inf if s.cliprange_value is None else s.cliprange_value
    free, clipped = (v - e.returns) ** 2, (np.clip(v, e.values - c, e.values + c) - e.returns) ** 2
    return np.maximum(free, clipped) / 2, clipped > free


def loss(
    model: Llama, sequences: list[Sequence], seen: list[Experience], policy: Weights, critic: Weights, s: Settings
) -> Loss:
    """L = L_policy + c_1 L_value - c_2 S (Schulman et al. 2017, eq. 9, negated), each a mean over all tokens."""
    tokens = {name: [] for name in ("policy", "value", "entropy", "policy_clipped", "value_clipped")}
    for sequence, e in zip(sequences, seen, strict=True):
        logprobs, entropy = logprobs_and_entropy(model, policy, sequence, s.temperature)
        parts = *policy_loss(logprobs, e, s), *value_loss(values(model, critic, sequence), e, s), entropy
        for name, x in zip(("policy", "policy_clipped", "value", "value_clipped", "entropy"), parts, strict=True):
            tokens[name].append(x)
    joined = {name: np.concatenate(parts, axis=-1) for name, parts in tokens.items()}
    means = {name: joined[name].mean(axis=-1) for name in ("policy", "value", "entropy")}
    total = means["policy"] + s.vf_coef * means["value"] - s.entropy_coef * means["entropy"]
    return Loss(total, **joined | means)


def gradient(loss_of: Callable[[Weights], Loss], parameters: Weights, step: float = 1e-5) -> Weights:
    """∂ total / ∂ every entry, by central differences: (L(x + h) - L(x - h)) / 2h.

    Raises:
        AssertionError: when a step takes a token across a clip boundary, where the loss has a kink.
    """
    here, slopes = loss_of(parameters), {}
    for name, x in parameters.items():
        steps = step * np.eye(x.size).reshape(x.size, *x.shape)
        there = loss_of(parameters | {name: x + np.concatenate([steps, -steps])})
        assert (there.policy_clipped == here.policy_clipped).all(), f"a step of {name} crosses the policy's clip"
        assert (there.value_clipped == here.value_clipped).all(), f"a step of {name} crosses the values' clip"
        up, down = np.split(there.total, 2)
        slopes[name] = ((up - down) / (2 * step)).reshape(x.shape)
    return slopes
