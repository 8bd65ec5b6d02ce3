"""One whole update of PPOTrainer against `numpy_ppo`, a plain NumPy PPO written from the papers alone.

The toy's weights are float64. What stays float32 stays so by construction: TRL's log-probabilities and entropy, the
norms and rotary angles inside Llama, the value head. That leaves errors of some 1e-7 in numbers and up to 3e-6 in
gradients, each relative to the largest number of its array; the bound is 1e-5.
"""

import ast
from pathlib import Path

import numpy as np
import numpy_ppo
import pytest
import torch
import toy
from numpy_ppo import Llama, Sequence, Settings, Weights
from toy import ANSWERS, EOS, PROMPTS

from pipeline.models.adapters import CRITIC, POLICY, REFERENCE, use_adapter

TOLERANCE = 1e-5
SCORES = dict(zip(PROMPTS, [0.7, -1.1, 0.4, 1.6, -0.3, 2.2, -0.8, 0.1], strict=True))
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Case:
    """The same settings, sequences and weights for both."""

    def __init__(self, *, fresh=False, tied=False, silent=(), tool_tokens=None, **settings):
        self.fresh, self.tied, self.silent, self.settings = fresh, tied, silent, Settings(**settings)
        self.tool_tokens = tool_tokens or {}

    def trainer(self, tmp_path, **config):
        """A PPOTrainer on the toy in which policy, reference and critic differ everywhere."""
        model = toy.build_model(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=self.tied).double()
        disturb(model, "norm", 4, 0.3)  # a norm's weights start at 1, which would hide them
        trainer = toy.make_trainer(
            tmp_path,
            model if self.fresh else toy.with_sft_adapter(model, lora_alpha=3),
            reward=lambda prompts, completions, **_: [None if p in self.silent else SCORES[p] for p in prompts],
            rollout_func=self.rollout,
            **self.settings._asdict() | config,
        )
        for seed, name in enumerate((POLICY, CRITIC)):
            disturb(trainer.model, name, seed, 0.1)
        disturb(trainer.model, "value_head", 2, 0.3)
        return trainer

    def rollout(self, prompts, trainer):
        sampled = toy.canned(ANSWERS)(prompts, trainer)
        ours = [[int(t not in self.tool_tokens.get(p, ())) for t in range(len(ANSWERS[p]))] for p in prompts]
        return sampled | ({"env_mask": ours} if self.tool_tokens else {})

    def sequences(self) -> list[Sequence]:
        """What NumPy gets to see: nothing of the rows without a score."""
        tokenizer, found = toy.tokenizer(), []
        for prompt, answer in ANSWERS.items():
            columns = [t for t in range(len(answer)) if t not in self.tool_tokens.get(prompt, ())]
            if prompt not in self.silent:
                found.append(Sequence(tokenizer(prompt)["input_ids"], answer, columns, SCORES[prompt]))
        return found


CASES = {
    "k1, whitened advantages": Case(),
    "k3, a fresh adapter, cooler, discounted": Case(
        fresh=True,
        kl_estimator="k3",
        temperature=0.7,
        gamma=0.9,
        lam=0.5,
        entropy_coef=0.01,
        whiten_advantages=False,
    ),
    "k2, tied head, uneven clip, missing EOS, whitened rewards": Case(
        tied=True, kl_estimator="k2", epsilon=0.1, epsilon_high=0.3, missing_eos_penalty=1.5, whiten_rewards=True
    ),
    "a row without a score, tokens of a tool, values unclipped": Case(
        silent=("cd", "ca"), tool_tokens={"dcec": [1], "dd": [2, 5], "cedb": [1]}, cliprange_value=None, gamma=0.95
    ),
}


every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# ---------------------------------------------------------------- weights from torch to NumPy
@torch.no_grad()
def disturb(model, name: str, seed: int, scale: float) -> None:
    """Adds random numbers to all parameters whose names have the part `name`, or a part that ends with it."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if any(part.endswith(name) for part in key.split(".")):
            parameter += torch.randn(parameter.shape, generator=generator) * scale


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy().copy()


def frozen(model) -> Llama:
    """The base as NumPy has it."""
    base = model.get_base_model()
    config, trunk = base.config, base.model
    weights = {"embedding": array(trunk.embed_tokens.weight), "norm": array(trunk.norm.weight)}
    if not config.tie_word_embeddings:
        weights["head"] = array(base.lm_head.weight)
    for i, layer in enumerate(trunk.layers):
        weights[f"{i}.before_attention"] = array(layer.input_layernorm.weight)
        weights[f"{i}.before_mlp"] = array(layer.post_attention_layernorm.weight)
        modules = dict(layer.self_attn.named_children()) | dict(layer.mlp.named_children())
        weights |= {f"{i}.{name}": array(modules[name].base_layer.weight) for name in LINEARS}
    lora = model.peft_config[POLICY]
    return Llama(
        weights,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        rope_theta=config.rope_parameters["rope_theta"],
        norm_eps=config.rms_norm_eps,
        lora_scale=lora.lora_alpha / lora.r,
    )


def parameters(model, name: str) -> dict[str, torch.nn.Parameter]:
    """Every LoRA matrix of the adapter `name` under NumPy's names; the critic has the value head as well."""
    found = {}
    for key, parameter in model.named_parameters():
        parts = key.split(".")
        if name in parts:
            matrix = next(part for part in parts if part.startswith("lora_")).removeprefix("lora_")
            found[f"{parts[parts.index('layers') + 1]}.{parts[-4]}.{matrix}"] = parameter
        elif name == CRITIC and "value_head" in parts:
            found[f"value_head.{parts[-1]}"] = parameter
    expected = {f"{i}.{linear}.{matrix}" for i in range(2) for linear in LINEARS for matrix in "AB"}
    assert set(found) - {"value_head.weight", "value_head.bias"} == expected
    return found


def adapter(model, name: str) -> Weights:
    return {key: array(parameter) for key, parameter in parameters(model, name).items()}


def gradients(base, sequences, seen, policy: Weights, critic: Weights, settings) -> tuple[Weights, Weights]:
    """NumPy's gradient of policy and critic, every entry."""
    return (
        numpy_ppo.gradient(lambda x: numpy_ppo.loss(base, sequences, seen, x, critic, settings), policy),
        numpy_ppo.gradient(lambda x: numpy_ppo.loss(base, sequences, seen, policy, x, settings), critic),
    )


def reference(case, model) -> Weights | None:
    return None if case.fresh else adapter(model, REFERENCE)


def experience(case, model):
    policy, critic = adapter(model, POLICY), adapter(model, CRITIC)
    return numpy_ppo.experience(
        frozen(model), case.sequences(), policy, reference(case, model), critic, EOS, case.settings
    )


def assert_same(found, expected, what: str, tolerance: float | None = None) -> None:
    """Equal to 1e-5 of the largest number (or to `tolerance`), which is not small itself."""
    found, largest = np.asarray(found, dtype=np.float64), np.abs(expected).max()
    assert found.shape == np.shape(expected), what
    assert largest > 1e-3, f"{what} is too small to tell anything: {largest}"
    error = np.abs(found - expected).max()
    assert error <= (tolerance or TOLERANCE * largest), f"{what}: off by {error}, the largest number is {largest}"


# ---------------------------------------------------------------- the second opinion itself
def test_the_second_opinion_is_independent():
    source = Path(numpy_ppo.__file__).read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {name.name for node in imports for name in node.names if isinstance(node, ast.Import)}
    modules |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert modules == {"numpy", "collections.abc", "typing"}


def test_the_second_opinion_by_hand():
    # gamma 1, lambda .95: δ = (0, 0, .5), so A = .5 · (.95², .95, 1)
    advantages = numpy_ppo.gae(np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.5, 0.5]), 1.0, 0.95)
    assert advantages.tolist() == pytest.approx([0.45125, 0.475, 0.5])
    # at position 1, pair 0 turns by 1 radian and pair 1 by θ^(-1/2)
    turned = numpy_ppo.rotate(np.array([[[0.0] * 4], [[1.0, 0.0, 0.0, 1.0]]]), theta=4.0)[1, 0]
    expected = [np.cos(1), -np.sin(0.5), np.sin(1), np.cos(0.5)]
    assert turned.tolist() == pytest.approx(expected)
    # x³ at 2 by its slope 12
    x = {"x": np.array([2.0])}
    cubed = numpy_ppo.gradient(lambda p: numpy_ppo.Loss(p["x"][..., 0] ** 3, *[np.zeros(1)] * 5), x)
    assert cubed["x"].tolist() == pytest.approx([12.0])


# ---------------------------------------------------------------- a rollout
@every_case
def test_rollout(tmp_path, case):
    trainer, s = case.trainer(tmp_path), case.settings
    batch = toy.sample(trainer)
    seen = experience(case, trainer.model)
    expected = numpy_ppo.Experience(*[np.concatenate(x) for x in zip(*seen, strict=True)])
    sampled = batch["loss_mask"].bool()
    assert sampled.sum() == len(expected.values)
    assert_same(batch["old_per_token_logps"][sampled], expected.old_logprobs, "old_logprobs")
    assert_same(batch["old_values"][sampled], expected.values, "values")
    assert_same(batch["advantages"][sampled], expected.advantages, "advantages")
    assert_same(batch["returns"][sampled], expected.returns, "returns")
    assert (batch["advantages"][~sampled] == 0).all() and (batch["returns"][~sampled] == 0).all()
    with use_adapter(trainer.model, None if case.fresh else REFERENCE):
        ref = [
            toy.hand_logprobs(trainer.model, x.prompt, x.completion, s.temperature)[x.columns]
            for x in case.sequences()
        ]
    assert_same(torch.cat(ref), expected.ref_logprobs, "ref_logprobs")
    # R_t = r_t + γ ((1-λ) V_{t+1} + λ R_{t+1}) gives the trainer's rewards (and so its reference's KL) away
    rewards = []
    for row in range(len(PROMPTS)):
        v, r = batch["old_values"][row][sampled[row]], batch["returns"][row][sampled[row]]
        after = torch.cat([((1 - s.lam) * v + s.lam * r)[1:], torch.zeros(min(1, len(v)))])
        rewards.append(r - s.gamma * after)
    assert_same(torch.cat(rewards), expected.rewards, "rewards")
    kl = np.mean([x.kl.sum() for x in seen])
    assert_same(trainer.journal.read()["kl"], kl, "kl")


# ---------------------------------------------------------------- the loss and its gradient
@every_case
def test_loss_and_every_gradient(tmp_path, case):
    trainer, s = case.trainer(tmp_path), case.settings
    batch = toy.sample(trainer)
    seen, sequences, base = experience(case, trainer.model), case.sequences(), frozen(trainer.model)
    # after the rollout the weights move, so that no ratio is 1 and some tokens are clipped
    for seed, name in enumerate((POLICY, CRITIC, "value_head")):
        disturb(trainer.model, name, 10 + seed, 0.05)
    policy, critic = adapter(trainer.model, POLICY), adapter(trainer.model, CRITIC)
    expected = numpy_ppo.loss(base, sequences, seen, policy, critic, s)
    assert 0 < expected.policy_clipped.mean() < 0.7
    assert s.cliprange_value is None or 0 < expected.value_clipped.mean() < 0.7

    found = toy.loss_of(trainer, batch)
    notes = trainer.journal.read()
    assert_same(found.detach(), expected.total, "loss")
    # a mean of whitened advantages nearly cancels, so the bound is of the terms (about 1) and not of the mean
    assert_same(notes["loss/policy"], expected.policy, "loss/policy", TOLERANCE)
    assert_same(notes["loss/value"], expected.value, "loss/value")
    assert_same(notes["entropy"], expected.entropy, "entropy")
    assert notes["clip_fraction/policy"] == pytest.approx(expected.policy_clipped.mean())
    assert notes["clip_fraction/value"] == pytest.approx(expected.value_clipped.mean())

    found.backward()
    by_numpy = gradients(base, sequences, seen, policy, critic, s)
    for name, slopes in zip((POLICY, CRITIC), by_numpy, strict=True):
        for key, parameter in parameters(trainer.model, name).items():
            assert_same(parameter.grad, slopes[key], f"gradient of {name} {key}")


# ---------------------------------------------------------------- one whole update
@pytest.mark.parametrize(
    "name", ["k1, whitened advantages", "a row without a score, tokens of a tool, values unclipped"]
)
def test_whole_update(tmp_path, name):
    """Rollout and two epochs by the trainer's own loop: two micro-batches a step, plain SGD."""
    rate, case = 0.1, CASES[name]
    sgd = {"optim": "sgd", "learning_rate": rate, "max_grad_norm": 0.0, "num_iterations": 2}
    trainer = case.trainer(tmp_path, **sgd, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    model = trainer.model
    seen, sequences, base = experience(case, model), case.sequences(), frozen(model)
    before = [adapter(model, POLICY), adapter(model, CRITIC)]
    trainer.train()

    now = before
    for epoch in range(2):
        clipped = numpy_ppo.loss(base, sequences, seen, *now, case.settings).policy_clipped
        assert clipped.any() == (epoch == 1)  # in the first every ratio is 1
        slopes = gradients(base, sequences, seen, *now, case.settings)
        now = [{k: x[k] - rate * g[k] for k in x} for x, g in zip(now, slopes, strict=True)]
    for who, start, end in zip((POLICY, CRITIC), before, now, strict=True):
        for key, x in adapter(model, who).items():
            assert_same((start[key] - x) / rate, (start[key] - end[key]) / rate, f"step of {who} {key}", TOLERANCE)
