"""The policy gradient that PPOTrainer follows, against the exact one of a language model small enough to enumerate.

Nine tokens and at most three of them make 585 completions, so the expected reward and its gradient can be written out
(`exact_gradient`). Two questions are asked of the trainer's own rollout and loss:

- unbiased? Every completion goes through the trainer once, weighed by its probability. This is the expectation of the
  estimator itself, without sampling noise, so it must agree to rounding.
- sampled right? The mean gradient of many really sampled rollouts must lie within its standard error.

The trainer divides a loss by the tokens of its mini-batch. That scale depends on how long the samples are, so here the
sum is divided by the number of completions instead.
"""

import itertools
import math

import pytest
import torch
import toy
from toy import EOS, A, B, D

from pipeline.models.adapters import POLICY, use_adapter

PROMPT = "cd"
LENGTH, VOCABULARY = 3, 9


def every_completion(length: int = LENGTH) -> list[list[int]]:
    """All sequences that end with EOS or are cut at `length`."""
    open_ends = [t for t in range(VOCABULARY) if t != EOS]
    found = []
    for n in range(1, length + 1):
        last = [EOS] if n < length else range(VOCABULARY)
        found += [[*start, end] for start in itertools.product(open_ends, repeat=n - 1) for end in last]
    return found


EVERY = every_completion()


def score(ids: list[int]) -> float:
    """Depends on the order of tokens, so that credit matters: a's count, a b right after an a counts 2, d's cost."""
    pairs = sum(2.0 for x, y in itertools.pairwise(ids) if (x, y) == (A, B))
    return ids.count(A) + pairs - 1.5 * ids.count(D) + (0.5 if ids[-1] == EOS else 0.0)


def end_only(prompts, completions, completion_ids, **columns):
    return [score(ids) for ids in completion_ids]


class Dense:
    """The same score, each token paid when it comes: differences of the score on prefixes."""

    __name__ = "dense"

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [score(ids) for ids in completion_ids]

    def token_rewards(self, prompts, completions, completion_ids, **columns):
        each = [[score(ids[: t + 1]) for t in range(len(ids))] for ids in completion_ids]
        return [[now - before for before, now in itertools.pairwise([0.0, *row])] for row in each]


def build(tmp_path, completions=EVERY, reward=end_only, **settings):
    """A trainer whose policy, reference and critic all differ, and which "samples" `completions` (None: really)."""

    def canned(prompts, trainer):
        ids = trainer.processing_class(text=prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": [list(c) for c in completions], "logprobs": None}

    defaults = {
        "per_device_train_batch_size": 256,
        "gradient_accumulation_steps": 1,
        "num_iterations": 1,
        "max_completion_length": LENGTH,
        "whiten_advantages": False,
        "kl_coef": 0.0,
        "vf_coef": 0.0,
        "lam": 1.0,
        "epsilon": 0.2,
    }
    if settings.get("algorithm") == "reinforce":
        for name in ("vf_coef", "lam"):
            del defaults[name]
    if completions is not None:
        settings["rollout_func"] = canned
    trainer = toy.make_trainer(
        tmp_path,
        toy.with_sft_adapter(),
        reward=reward,
        prompts=[PROMPT] * 256,
        total_episodes=256,
        **defaults | settings,
    )
    toy.randomize(trainer.model, POLICY, 9, scale=0.3)
    if trainer.critic is not None:
        toy.randomize(trainer.model, "critic", 3)
        torch.nn.init.normal_(trainer.critic.head.weight, generator=torch.Generator().manual_seed(4))
    return trainer


def policy_parameters(trainer) -> list[torch.nn.Parameter]:
    return [p for n, p in trainer.model.named_parameters() if POLICY in n.split(".")]


def logprobs_of(trainer, completions) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token (N, length), with gradient, and which are real; by one plain forward pass."""
    prompt = trainer.processing_class(text=PROMPT)["input_ids"]
    width = max(map(len, completions))
    ids = torch.tensor([[*prompt, *c, *[0] * (width - len(c))] for c in completions])
    real = torch.tensor([[t < len(c) for t in range(width)] for c in completions])
    logits = trainer.model(input_ids=ids).logits[:, len(prompt) - 1 : -1].double()
    each = logits.log_softmax(-1).gather(-1, ids[:, len(prompt) :, None]).squeeze(-1)
    return torch.where(real, each, 0), real


def exact(trainer, kl_coef: float = 0.0):
    """Gradient of Σ_y p(y) [score(y) - β log(p(y)/p_ref(y))], the p(y), and the exact KL."""
    logprobs, _ = logprobs_of(trainer, EVERY)
    with torch.no_grad(), use_adapter(trainer.model, trainer.reference_adapter):
        ref_logprobs, _ = logprobs_of(trainer, EVERY)
    p, log_ratio = logprobs.sum(1).exp(), (logprobs - ref_logprobs).sum(1)
    scores = torch.tensor([score(c) for c in EVERY], dtype=torch.float64)
    objective = (p * (scores - kl_coef * log_ratio)).sum()
    return flat(torch.autograd.grad(objective, policy_parameters(trainer))), p.detach(), (p * log_ratio).sum().item()


def flat(gradients) -> torch.Tensor:
    return torch.cat([g.flatten().double() for g in gradients])


def gradient(trainer, batch, weights: torch.Tensor) -> torch.Tensor:
    """Minus the gradient of the trainer's own loss, in which completion i counts `weights[i]`."""
    batch = batch | {"advantages": batch["advantages"] * weights[:, None].to(batch["advantages"])}
    batch["num_items_in_batch"] = torch.tensor(1.0)
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, batch)
    return -flat(torch.autograd.grad(loss, policy_parameters(trainer)))


def expectation(trainer, p: torch.Tensor) -> torch.Tensor:
    """The expected gradient of the trainer: every completion once, weighed by its probability."""
    batch = toy.sample(trainer, [PROMPT] * len(EVERY))
    assert batch["loss_mask"].sum() == sum(map(len, EVERY))
    return gradient(trainer, batch, p)


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert expected.norm() > 0.1
    assert (found - expected).norm() / expected.norm() < tolerance


def test_there_are_585_completions_and_they_are_all_there_is(tmp_path):
    trainer = build(tmp_path)
    _, p, _ = exact(trainer)
    assert len(EVERY) == 1 + 8 + 8 * 8 * 9
    assert p.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert p.max() < 0.2  # far from decided, so every term of the sums matters


# ---------------------------------------------------------------- the expectation, without noise
@pytest.mark.parametrize("reward", [end_only, Dense()], ids=["end", "dense"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.4])
@pytest.mark.parametrize("algorithm", ["reinforce", "a2c", "ppo"])
def test_expected_gradient_is_the_exact_one(tmp_path, algorithm, kl_coef, reward):
    """REINFORCE; a critic that knows nothing as baseline (λ = 1: no bias, whatever it says); with KL; dense."""
    trainer = build(tmp_path, reward=reward, algorithm=algorithm, kl_coef=kl_coef)
    expected, p, _ = exact(trainer, kl_coef)
    assert_close(expectation(trainer, p), expected)


def test_reward_to_go_leaves_the_past_out(tmp_path):
    """Dense rewards change what each token is blamed for, not the expectation: less variance, the same gradient."""
    variances = []
    for reward in (end_only, Dense()):
        trainer = build(tmp_path, reward=reward, algorithm="reinforce")
        _, p, _ = exact(trainer)
        batch = toy.sample(trainer, [PROMPT] * len(EVERY))
        variances.append((p * (batch["advantages"] ** 2).sum(1)).sum().item())
    assert variances[1] < 0.9 * variances[0]


def test_lambda_below_one_is_exact_with_an_exact_critic_only(tmp_path):
    """GAE (Schulman et al. 2016): the bias of λ < 1 is the critic's error."""
    trainer = build(tmp_path, algorithm="a2c", lam=0.3)
    expected, p, _ = exact(trainer)
    wrong = expectation(trainer, p)
    assert (wrong - expected).norm() / expected.norm() > 0.05
    # V before token t: mean score of all completions that begin alike
    totals, masses = {}, {}
    for completion, mass in zip(EVERY, p.tolist(), strict=True):
        for t in range(len(completion)):
            start = tuple(completion[:t])
            totals[start] = totals.get(start, 0.0) + mass * score(completion)
            masses[start] = masses.get(start, 0.0) + mass
    table = torch.zeros(len(EVERY), LENGTH)
    for row, completion in enumerate(EVERY):
        for t in range(len(completion)):
            table[row, t] = totals[tuple(completion[:t])] / masses[tuple(completion[:t])]
    trainer._values = lambda batch: (table, None)
    batch = toy.sample(trainer, [PROMPT] * len(EVERY))
    del trainer._values
    assert_close(gradient(trainer, batch, p), expected)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expected_kl_is_the_exact_one(tmp_path, estimator):
    trainer = build(
        tmp_path, kl_estimator=estimator, kl_coef=1.0, reward=lambda prompts, **columns: [0.0] * len(prompts)
    )
    _, p, kl = exact(trainer)
    batch = toy.sample(trainer, [PROMPT] * len(EVERY))
    assert kl > 0.1
    # λ = 1, no score: the return of the first token is minus the KL of the whole completion
    assert (-p * batch["returns"][:, 0]).sum().item() == pytest.approx(kl, rel=1e-5)


def test_the_known_bias_of_k3(tmp_path):
    """k3 has the right mean, but its own gradient, E[∇k3] = -E[π_ref/π ∇log π], is missing when it is a reward.

    k1 is free of this: E[∇k1] = E[∇log π] = 0.
    """
    trainer = build(tmp_path, kl_estimator="k3", kl_coef=0.4, algorithm="reinforce")
    expected, p, _ = exact(trainer, kl_coef=0.4)
    found = expectation(trainer, p)
    assert (found - expected).norm() / expected.norm() > 0.02
    logprobs, real = logprobs_of(trainer, EVERY)
    with torch.no_grad(), use_adapter(trainer.model, trainer.reference_adapter):
        ref_logprobs, _ = logprobs_of(trainer, EVERY)
    ratio = torch.where(real, (ref_logprobs - logprobs).exp(), 0)
    missing = torch.autograd.grad(
        (p[:, None] * -ratio.detach() * logprobs).sum(), policy_parameters(trainer)
    )  # E[Σ_t ∇k3_t]
    assert_close(found, expected + 0.4 * flat(missing))


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_leave_one_out_takes_nothing_from_the_expectation(tmp_path, algorithm):
    """Groups of two completions of at most two tokens: 73² pairs, each weighed by its probability."""
    short = every_completion(2)
    pairs = [c for pair in itertools.product(short, repeat=2) for c in pair]
    trainer = build(
        tmp_path, pairs, algorithm=algorithm, baseline="leave_one_out", num_generations=2, max_completion_length=2
    )
    logprobs, _ = logprobs_of(trainer, short)
    p = logprobs.sum(1).exp()
    expected = flat(
        torch.autograd.grad((p * torch.tensor([score(c) for c in short])).sum(), policy_parameters(trainer))
    )
    p = p.detach()
    weights = (p[:, None] * p[None, :]).flatten().repeat_interleave(2) / 2  # the mean of the two
    batch = toy.sample(trainer, [PROMPT] * len(pairs))
    assert_close(gradient(trainer, batch, weights), expected)
    if algorithm == "ppo":
        return
    # and it is there: advantages are differences within the pair (γ = 1, no KL)
    assert batch["advantages"][:, 0].view(-1, 2).sum(1).abs().max() < 1e-5


# ---------------------------------------------------------------- real samples
@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "reinforce"},
        {"algorithm": "reinforce", "baseline": "moving_average"},
        {"algorithm": "reinforce", "baseline": "leave_one_out", "num_generations": 4},
        {"algorithm": "a2c", "kl_coef": 0.4},
        {"algorithm": "ppo", "reward": Dense()},
    ],
    ids=["reinforce", "moving average", "leave one out", "critic and KL", "dense"],
)
def test_sampled_gradient_agrees_within_its_standard_error(tmp_path, settings):
    trainer = build(tmp_path, None, **settings)
    expected, _, _ = exact(trainer, settings.get("kl_coef", 0.0))
    torch.manual_seed(11)
    count, size = 60, 256
    each = torch.stack(
        [gradient(trainer, toy.sample(trainer, [PROMPT] * size), torch.full((size,), 1 / size)) for _ in range(count)]
    )
    mean, error = each.mean(0), each.std(0) / math.sqrt(count)
    seen = error > error.max() * 1e-3  # coordinates that move at all
    z = ((mean - expected) / error)[seen]
    # |z|: mean √(2/π) = 0.8, 5% beyond 2 for a right estimator
    assert z.abs().mean() < 1.2 and (z.abs() > 3).float().mean() < 0.05
    # the test has power: the noise left is small against the gradient itself
    assert error.norm() / expected.norm() < 0.25
    assert (mean - expected).norm() / expected.norm() < 0.3
