"""Adapters on one base: which one is active, which ones learn, copies, and activation checkpointing."""

import pytest
import torch
import toy
from toy import ANSWERS, A, B, C, D

from pipeline.models.adapters import (
    CRITIC,
    POLICY,
    REFERENCE,
    adapter_layers,
    copy_adapter,
    train_only,
    use_adapter,
)

IDS = torch.tensor([[C, D, A, B]])


def trainable(model) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def model():
    """Policy and a second adapter `critic`, both far from the identity."""
    model = toy.with_sft_adapter()
    model.add_adapter(CRITIC, toy.lora(r=3))
    toy.randomize(model, CRITIC, 5)
    return model.eval()


def test_use_adapter_activates_the_named_one(model):
    plain = toy.build_model().eval()(input_ids=IDS).logits
    policy = toy.with_sft_adapter().eval()(input_ids=IDS).logits
    before = model(input_ids=IDS).logits
    torch.testing.assert_close(before, policy)
    with use_adapter(model, None):
        torch.testing.assert_close(model(input_ids=IDS).logits, plain)
        with use_adapter(model, CRITIC):
            critic = model(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, plain)
    assert (critic - plain).abs().max() > 1e-2 and (critic - policy).abs().max() > 1e-2
    torch.testing.assert_close(model(input_ids=IDS).logits, before, atol=0, rtol=0)


def test_use_adapter_changes_nothing_else_even_after_an_error(model):
    train_only(model, [POLICY, CRITIC])
    learning, before = trainable(model), model(input_ids=IDS).logits
    with pytest.raises(RuntimeError), use_adapter(model, None):
        raise RuntimeError
    assert trainable(model) == learning
    torch.testing.assert_close(model(input_ids=IDS).logits, before, atol=0, rtol=0)


def test_train_only(model):
    head = torch.nn.Linear(2, 1)
    train_only(model, [CRITIC], extra=head.parameters())
    assert trainable(model) == {n for n, _ in model.named_parameters() if "lora_" in n and f".{CRITIC}." in n}
    assert len(trainable(model)) == 2 * len(adapter_layers(model)) == 28  # A and B of 7 layers in 2 blocks
    assert head.weight.requires_grad


def test_a_copy_says_the_same_and_stays(model):
    copy_adapter(model, POLICY, REFERENCE)
    before = model(input_ids=IDS).logits
    with use_adapter(model, REFERENCE):
        torch.testing.assert_close(model(input_ids=IDS).logits, before, atol=0, rtol=0)
    toy.randomize(model, POLICY, 8)
    with use_adapter(model, REFERENCE):
        torch.testing.assert_close(model(input_ids=IDS).logits, before, atol=0, rtol=0)
    assert (model(input_ids=IDS).logits - before).abs().max() > 1e-2


def test_adapters_on_embeddings_are_copied_too():
    """Their parameters are called ….lora_embedding_A.default, without a `.weight`."""
    model = toy.with_sft_adapter(target_modules=["embed_tokens", "q_proj"]).eval()
    for name, parameter in model.named_parameters():
        if "lora_embedding" in name:
            torch.nn.init.normal_(parameter)
    expected = model(input_ids=IDS).logits
    copy_adapter(model, POLICY, REFERENCE)
    with use_adapter(model, None):
        assert (model(input_ids=IDS).logits - expected).abs().max() > 1e-2
    with use_adapter(model, REFERENCE):
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=0, rtol=0)


def test_a_copy_of_a_pissa_adapter_leaves_the_base_alone():
    model = toy.get_peft_model(toy.build_model(), toy.lora(init_lora_weights="pissa")).eval()
    base = {n: p.clone() for n, p in model.named_parameters() if "base_layer" in n}
    expected = model(input_ids=IDS).logits
    copy_adapter(model, POLICY, REFERENCE)
    assert all(torch.equal(model.get_parameter(n), p) for n, p in base.items())
    with use_adapter(model, REFERENCE):
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=0, rtol=0)


def test_dora_adapters_are_copied_and_trained(tmp_path):
    trainer = toy.make_trainer(tmp_path, toy.with_sft_adapter(use_dora=True), rollout_func=toy.canned(ANSWERS))
    trainer.train()
    assert toy.logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-6)
    assert any("magnitude" in n and f".{CRITIC}." in n for n in toy.learned(trainer))


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path):
    """Of policy and critic: the recomputation sees the adapter that the forward pass saw."""
    found = []
    for checkpointing in (False, True):
        trainer = toy.make_trainer(
            tmp_path,
            toy.with_sft_adapter(),
            rollout_func=toy.canned(ANSWERS),
            gradient_checkpointing=checkpointing,
            num_iterations=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
        )
        toy.randomize(trainer.model, CRITIC, 3)
        torch.nn.init.normal_(trainer.critic.head.weight)
        before = toy.learned(trainer)
        trainer.train()
        assert trainer.model.get_base_model().model.layers[0].gradient_checkpointing is checkpointing
        found.append({n: p - before[n] for n, p in toy.learned(trainer).items()})
    for part in (POLICY, CRITIC):
        assert max(step.abs().max() for n, step in found[0].items() if f".{part}." in n) > 1e-2
    for name, step in found[0].items():
        torch.testing.assert_close(found[1][name], step, atol=1e-6, rtol=1e-4, msg=name)
