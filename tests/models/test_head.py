"""Log-probabilities in the short form: by hand, TRL's own numbers, and what must be left to TRL."""

from math import log

import pytest
import torch
import toy
import transformers
from torch import nn
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import add_fused_lm_head

from pipeline.models import head
from pipeline.models.head import _LogProbs, lean_head

LABELS = torch.tensor([[-100, -100, toy.A, toy.B, toy.C, toy.EOS], [-100, -100, toy.D, toy.E, -100, -100]])
IDS = LABELS.where(LABELS >= 0, torch.tensor(toy.C))


def test_a_token_by_hand():
    """One state, two words with the logits 0 and ln 3, so p = (1/4, 3/4)."""
    states, words = torch.tensor([[1.0], [1.0]], requires_grad=True), torch.tensor([[0.0], [log(3)]])
    logprobs, entropy, is_top1 = _LogProbs.apply(states, words, torch.tensor([0, 1]), 1.0)
    assert logprobs.tolist() == pytest.approx([log(1 / 4), log(3 / 4)])
    assert entropy.tolist() == pytest.approx([log(4) - 3 / 4 * log(3)] * 2)
    assert is_top1.tolist() == [False, True]
    (logprobs * torch.tensor([1.0, 2.0])).sum().backward()
    assert states.grad[:, 0].tolist() == pytest.approx([0 - 3 / 4 * log(3), 2 * (log(3) - 3 / 4 * log(3))])


def test_a_temperature_by_hand():
    """The logits 0 and 2 ln 3 at τ = 2 are 0 and ln 3, and d/dh has 1/τ before it."""
    states, words = torch.tensor([[2.0]], requires_grad=True), torch.tensor([[0.0], [log(3)]])
    logprobs, entropy, _ = _LogProbs.apply(states, words, torch.tensor([0]), 2.0)
    assert logprobs.item() == pytest.approx(log(1 / 4)) and entropy.item() == pytest.approx(log(4) - 3 / 4 * log(3))
    logprobs.sum().backward()
    assert states.grad.item() == pytest.approx(-3 / 4 * log(3) / 2)


@pytest.mark.parametrize("at_once", [1, 14, 10**6], ids=["a row", "two rows", "all"])
def test_second_opinion_on_the_gradient(at_once, monkeypatch):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", at_once)
    drawn = torch.Generator().manual_seed(0)
    states, words = (torch.randn(n, 3, dtype=torch.double, generator=drawn) for n in (5, 7))
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(
        lambda states: _LogProbs.apply(states, words, targets, 0.7)[0], states.requires_grad_()
    )


def of(model, temperature, ours, autocast=False):
    """What the fused head says, and the gradient of every adapter weight."""
    add_fused_lm_head(model.get_base_model(), temperature, outputs=("log_probs", "entropy", "is_top1"))
    if ours:
        lean_head(model.get_base_model(), temperature)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(input_ids=IDS, labels=LABELS, fused_lm_head=True)
    out.log_probs.square().sum().backward()
    return out, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def policy(dtype=torch.float32):
    return toy.with_sft_adapter(toy.build_model().to(dtype))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_model_says_what_trls_head_says(temperature):
    theirs, their_grad = of(policy(), temperature, ours=False)
    ours, our_grad = of(policy(), temperature, ours=True)
    for name in ("loss", "log_probs", "entropy"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)
    assert torch.equal(ours.label_mask, theirs.label_mask)
    assert torch.equal(ours.is_top1 & ours.label_mask, theirs.is_top1.bool() & theirs.label_mask)
    assert our_grad.norm() > 0.1
    torch.testing.assert_close(our_grad, their_grad, atol=2e-5, rtol=1e-4)


def test_sixteen_bits_lose_no_more_than_with_trls():
    """Both round, each in another place: neither may be much farther from float64 than the other."""
    drawn = torch.Generator().manual_seed(0)
    states, words = (torch.randn(n, 64, generator=drawn).bfloat16() for n in (200, 500))
    targets = (states @ words.T).argmax(dim=1)  # a policy is often sure of what it said: p_t near 1
    targets[::2] = torch.randint(500, (100,), generator=drawn)

    def grad(function, dtype):
        x = states.to(dtype).requires_grad_()
        function(x, words.to(dtype)).sum().backward()
        return x.grad.double()

    def ours(x, words):
        return _LogProbs.apply(x, words, targets, 1.0)[0]

    def theirs(x, words):
        return ChunkedLogProbFunction.apply(x, words, None, targets, 1.0, 2**15, None, 1.0, ())[0]

    exact = grad(ours, torch.float64)
    torch.testing.assert_close(grad(theirs, torch.float32), exact, atol=1e-4, rtol=1e-4)
    lost, of_trl = ((grad(function, torch.bfloat16) - exact).norm() for function in (ours, theirs))
    assert 0 < lost < 1.1 * of_trl


def test_under_autocast_the_products_are_in_sixteen_bits():
    plain, cast = (of(policy(), 1.0, ours=True, autocast=autocast)[0].log_probs for autocast in (False, True))
    assert cast.dtype == torch.float32 and 1e-6 < (cast - plain).abs().max() < 0.1


def test_of_equal_logits_the_first_is_the_likeliest():
    words = torch.tensor([[1.0], [1.0], [0.0]])
    _, _, is_top1 = _LogProbs.apply(torch.ones(3, 1), words, torch.tensor([0, 1, 2]), 1.0)
    assert is_top1.tolist() == [True, False, False]


def test_rows_without_a_label_have_a_gradient_of_zero():
    model = policy()
    add_fused_lm_head(model.get_base_model())
    lean_head(model.get_base_model())
    out = model(input_ids=IDS, labels=torch.full_like(IDS, -100), fused_lm_head=True)
    out.log_probs.sum().backward()
    assert out.loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def trained_head(model):
    model.get_output_embeddings().weight.requires_grad_()


def with_bias(model):
    model.get_output_embeddings().bias = nn.Parameter(torch.zeros(9), requires_grad=False)


def scaled(model):
    model.config.logits_scaling = 2.0


def capped(model):
    model.config.final_logit_softcapping = 5.0


@pytest.mark.parametrize("change", [trained_head, with_bias, scaled, capped])
def test_what_is_not_plain_is_left_to_trl(change, monkeypatch):
    def once(ours):
        model = policy()
        change(model.get_base_model())
        return of(model, 1.0, ours)

    theirs = once(False)[0]
    monkeypatch.setattr(_LogProbs, "apply", None)  # nobody calls it
    assert torch.equal(once(True)[0].log_probs, theirs.log_probs)


def test_generation_and_plain_logits_are_as_before():
    model = policy().get_base_model()
    wanted = model(input_ids=IDS, labels=IDS)
    add_fused_lm_head(model)
    lean_head(model)
    found = model(input_ids=IDS, labels=IDS)
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.loss, wanted.loss)
    settings = transformers.GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=toy.PAD)
    assert model.generate(IDS, generation_config=settings).shape == (2, 9)
