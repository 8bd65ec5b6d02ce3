"""The point on the line between two adapters: by a dense SVD in numpy, and by PEFT's own."""

import numpy as np
import pytest
import torch
import toy
from lines import closest
from peft.tuners.lora import LoraLayer

from pipeline.models.adapters import CRITIC, POLICY, copy_adapter
from pipeline.models.averaging import Averaging, point

W = 0.7


def factors(seed, rank=3, out=8, into=6):
    generator = np.random.default_rng(seed)
    A, B = generator.normal(size=(rank, into)), generator.normal(size=(out, rank))
    return torch.tensor(A), torch.tensor(B)


def test_from_a_new_adapter_it_is_exact_at_the_same_rank():
    A, B = factors(0)
    found_A, found_B, rest = point((factors(1)[0], torch.zeros_like(B)), (A, B), 0.6)
    assert torch.equal(found_A, A) and torch.equal(found_B, 0.6 * B) and len(rest) == 0


def test_between_adapters_that_share_a_factor_it_is_the_mean_of_the_products():
    (A, B0), (_, B1) = factors(0), factors(1)
    found_A, found_B, rest = point((A, B0), (A, B1), 0.5)
    np.testing.assert_allclose(found_B @ found_A, (B0 @ A + B1 @ A) / 2, atol=1e-12)
    np.testing.assert_allclose(rest, 0, atol=1e-12)


@pytest.mark.parametrize("shape", [{}, {"out": 2}, {"into": 2}, {"out": 4, "into": 4}, {"rank": 12}])
def test_it_is_the_closest_matrix_of_the_rank(shape):
    (A0, B0), (A1, B1) = factors(0, **shape), factors(1, **shape)
    A, B, rest = point((A0, B0), (A1, B1), W)
    assert A.shape == A1.shape and B.shape == B1.shape
    line = (1 - W) * (B0.numpy() @ A0.numpy()) + W * (B1.numpy() @ A1.numpy())
    expected, lacking = closest(line, len(A1))
    np.testing.assert_allclose(B @ A, expected, atol=1e-12)
    np.testing.assert_allclose(np.sum(rest.numpy() ** 2), np.sum(lacking**2), atol=1e-12)


def deltas(model, name) -> dict[str, torch.Tensor]:
    found = {key: layer for key, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {key: layer.get_delta_weight(name).detach() for key, layer in found.items()}


def trained(**config):
    """A model whose policy has gone somewhere else since `Averaging` saw it; `start` is what it was."""
    model = toy.with_sft_adapter(**config)
    line = Averaging(model, W)
    copy_adapter(model, POLICY, "start")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and POLICY in name.split("."):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    copy_adapter(model, POLICY, "end")
    return model, line


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"q_proj": 3}, "use_rslora": True},
    ],
)
def test_it_is_what_pefts_own_svd_finds(config):
    model, line = trained(**config)
    line.apply()
    expected, start, end = {}, deltas(model, "start"), deltas(model, "end")
    if "use_rslora" in config:  # whose scale and ranks PEFT's function forgets
        for key in start:
            rank = 3 if "q_proj" in key else 2
            matrix, _ = closest(((1 - W) * start[key] + W * end[key]).double().numpy(), rank)
            expected[key] = torch.tensor(matrix, dtype=torch.float32)
    else:
        model.add_weighted_adapter(["start", "end"], [1 - W, W], "theirs", combination_type="svd")
        expected = deltas(model, "theirs")
    found = deltas(model, POLICY)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=1e-5, rtol=1e-4)
        assert (found[key] - end[key]).abs().max() > 1e-2, key  # and it did something


def test_nothing_but_the_policy_moves_and_it_says_what_the_rank_could_not_hold():
    model, line = trained(alpha_pattern={"q_proj": 32})
    model.add_adapter(CRITIC, toy.lora(r=3))
    toy.randomize(model, CRITIC, 5)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    share = line.apply()
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed and all(".default." in name and "lora_" in name for name in changed)
    start, end, lost, way = deltas(model, "start"), deltas(model, "end"), 0.0, 0.0
    for key in start:
        _, lacking = closest(((1 - W) * start[key] + W * end[key]).double().numpy(), 2)
        lost += float(np.sum(lacking**2))
        way += float((W * (end[key] - start[key])).double().square().sum())
    assert share == pytest.approx((lost / way) ** 0.5, rel=1e-5) and share > 0.01


def test_one_that_did_not_move_stays():
    model = toy.with_sft_adapter()
    before = deltas(model, POLICY)
    assert Averaging(model, W).apply() == pytest.approx(0, abs=1e-9)
    for key, delta in deltas(model, POLICY).items():
        torch.testing.assert_close(delta, before[key], atol=1e-6, rtol=1e-5)
