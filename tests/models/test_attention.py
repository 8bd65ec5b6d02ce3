"""Attention over short rows in bfloat16: the formula, masks, groups of heads, and when it is used."""

import math

import pytest
import torch
import toy
from toy import PAD, A, B, C, D

from pipeline.models.attention import SHORT_ROWS, attend, use_short_rows


def by_the_formula(query, key, value, seen, scaling):
    """Loops over (B, H, Tq, D) and (B, Hkv, Tk, D) in double precision; `seen` (B, Tq, Tk)."""
    out = torch.zeros(query.shape[0], query.shape[2], query.shape[1], query.shape[3], dtype=torch.double)
    groups = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for t in range(query.shape[2]):
                places = seen[b, t].nonzero().flatten().tolist()
                scores = [(query[b, h, t].double() @ key[b, h // groups, s].double()) * scaling for s in places]
                weights = [math.exp(score) for score in scores]
                for s, weight in zip(places, weights, strict=True):
                    out[b, t, h] += weight / sum(weights) * value[b, h // groups, s].double()
    return out


def tensors(queries=4, keys=4):
    torch.manual_seed(0)
    return (torch.randn(2, heads, n, 8).bfloat16() for heads, n in ((4, queries), (2, keys), (2, keys)))


CAUSAL = torch.ones(2, 4, 4, dtype=torch.bool).tril()
LEFT_PADDED = CAUSAL & torch.tensor([[True] * 4, [False, True, True, True]])[:, None]


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_the_formula(kind):
    query, key, value = tensors()
    seen = CAUSAL if kind == "none" else LEFT_PADDED
    mask = {
        "none": None,
        "bool": seen[:, None],
        "added": torch.where(seen, 0.0, torch.finfo(torch.bfloat16).min).bfloat16()[:, None],
    }[kind]
    found, weights = attend(None, query, key, value, mask, scaling=0.25)
    assert weights is None and found.dtype == torch.bfloat16
    expected = by_the_formula(query, key, value, seen, 0.25)
    rows = seen.any(dim=2)  # a query that sees nothing has no answer
    assert (found.double() - expected)[rows].abs().max() < 0.03


def test_one_query_sees_all_keys():
    """A decoding step: no mask, one query."""
    query, key, value = tensors(queries=1)
    found, _ = attend(None, query, key, value, None)
    expected = by_the_formula(query, key, value, torch.ones(2, 1, 4, dtype=torch.bool), 8**-0.5)
    assert (found.double() - expected).abs().max() < 0.03


def test_long_rows_go_the_usual_way():
    torch.manual_seed(0)
    query = torch.randn(1, 1, 300, 8).bfloat16().requires_grad_()
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 1, True
    found, _ = attend(module, query, query, query, None)
    assert "Transpose" in type(found.grad_fn).__name__ or "Clone" in type(found.grad_fn).__name__
    names, nodes = set(), [found.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [n for n, _ in node.next_functions if n is not None]
    assert any("ScaledDotProduct" in name for name in names) and "SoftmaxBackward0" not in names


def test_a_model_says_the_same_with_it():
    model = toy.build_model().bfloat16()
    ids = torch.tensor([[C, D, A, B], [PAD, PAD, A, B]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    plain = model(ids, attention_mask=mask).logits.float()
    use_short_rows(model)
    assert model.config._attn_implementation == SHORT_ROWS
    ours = model(ids, attention_mask=mask).logits.float()
    assert not torch.equal(ours, plain)  # it was used
    assert (ours - plain)[mask.bool()].abs().max() < 0.03 * plain.abs().max()


@pytest.mark.parametrize("kind", ["float32", "eager"])
def test_other_models_keep_theirs(kind):
    model = toy.build_model() if kind == "float32" else toy.build_model().bfloat16()
    if kind == "eager":
        model.set_attn_implementation("eager")
    before = model.config._attn_implementation
    use_short_rows(model)
    assert model.config._attn_implementation == before
