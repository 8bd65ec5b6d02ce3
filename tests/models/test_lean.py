"""Layers in the short form: formulas by hand, the libraries' own numbers, and what must be left to them."""

import pytest
import torch
import toy
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pipeline.models.lean import LeanLinear, LeanMLP, LeanRMSNorm, _RMSNorm, _SwiGLU, lean
from pipeline.models.trunk import Tail, Trunk


def layer(bias=True, **config):
    """One linear layer 2 -> 2 with an adapter of rank 1 and scale 1/2; all numbers by hand."""
    model = nn.Sequential(nn.Linear(2, 2, bias=bias)).requires_grad_(False)
    settings = {"r": 1, "lora_alpha": 0.5, "target_modules": ["0"]}
    model = get_peft_model(model, LoraConfig(**settings | config))
    module = model.base_model.model[0]
    with torch.no_grad():
        module.base_layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        if bias:
            module.base_layer.bias.copy_(torch.tensor([0.5, -0.5]))
        module.lora_A["default"].weight.copy_(torch.tensor([[1.0, -1.0]]))
        module.lora_B["default"].weight.copy_(torch.tensor([[2.0], [1.0]]))
    return model, module


def test_the_formula_and_its_gradient_by_hand():
    model, module = layer()
    lean(model)
    assert type(module) is LeanLinear
    x = torch.tensor([[[3.0, 1.0]]], requires_grad=True)
    y = module(x)
    # W x + b = [5.5, 12.5]; A x = 2; s B A x = [2, 1]
    assert y.tolist() == [[[7.5, 13.5]]]
    y.sum().backward()
    # Wᵀ 1 = [4, 6]; Bᵀ 1 = 3; s Aᵀ 3 = [1.5, -1.5]
    assert x.grad.tolist() == [[[5.5, 4.5]]]
    assert module.lora_A["default"].weight.grad.tolist() == [[4.5, 1.5]]  # s · 3 · xᵀ
    assert module.lora_B["default"].weight.grad.tolist() == [[1.0], [1.0]]  # s · 1 · A x
    assert module.base_layer.weight.grad is None


def test_second_opinion_on_the_gradient():
    model, module = layer()
    lean(model.double())
    x = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    A, B = (part["default"].weight for part in (module.lora_A, module.lora_B))
    assert torch.autograd.gradcheck(lambda x, *_: module(x).square(), (x, A, B))


def outputs(model, autocast=False):
    """Logits and the gradient of every adapter weight, as one long vector."""
    ids = torch.tensor([[toy.C, toy.D, toy.A, toy.B]])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(ids).logits
    logits.float().square().mean().backward()
    return torch.cat([x.float().flatten() for x in (logits, *(p.grad for p in model.parameters() if p.requires_grad))])


def sft_model(dtype):
    torch.manual_seed(0)
    return toy.with_sft_adapter(toy.build_model().to(dtype))


def test_a_whole_model_says_what_peft_says():
    model = sft_model(torch.float32)
    plain = outputs(model)
    lean(model)
    torch.testing.assert_close(outputs(model), plain, atol=1e-6, rtol=1e-4)


def test_sixteen_bits_lose_no_more_than_with_peft():
    """Both round, each in another place: neither may be much farther from float32 than the other."""
    exact = outputs(sft_model(torch.float32))
    model = sft_model(torch.bfloat16)
    of_peft = (outputs(model, autocast=True) - exact).norm()
    lean(model)
    ours = (outputs(model, autocast=True) - exact).norm()
    assert 0 < ours < 1.25 * of_peft


def test_one_adapter_after_the_other():
    model, module = layer()
    model.add_adapter("second", LoraConfig(r=1, lora_alpha=1, target_modules=["0"]))
    nn.init.ones_(module.lora_A["second"].weight), nn.init.ones_(module.lora_B["second"].weight)
    lean(model)
    x = torch.tensor([[3.0, 1.0]])
    module._active_adapter = ["second"]
    assert module(x).tolist() == [[9.5, 16.5]]  # [5.5, 12.5] + 4
    module._active_adapter = []
    assert module(x).tolist() == [[5.5, 12.5]]
    module._active_adapter = ["default", "second"]
    assert module(x).tolist() == [[11.5, 17.5]]  # both


@pytest.mark.parametrize("case", ["dropout", "dora", "merged", "disabled", "bias of LoRA", "trained base"])
def test_what_is_not_plain_is_left_to_peft(case, monkeypatch):
    config = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}, "bias of LoRA": {"lora_bias": True}}
    model, module = layer(**config.get(case, {}))
    lean(model)
    model.train()
    if case == "merged":
        model.merge_adapter()
    if case == "disabled":
        model.base_model.disable_adapter_layers()
    module.base_layer.weight.requires_grad_(case == "trained base")
    asked = []
    monkeypatch.setattr(Linear, "forward", lambda self, x, *args, **kwargs: asked.append(x) or x)
    module(torch.ones(1, 2))
    assert len(asked) == 1
    if case == "dropout":  # off in evaluation: then it is plain
        module.eval()(torch.ones(1, 2))
        assert len(asked) == 1


def test_other_layers_stay_as_they_are():
    model = toy.with_sft_adapter(toy.build_gpt2())  # Conv1D, not Linear
    kinds = [type(module) for module in model.modules()]
    lean(model)
    assert [type(module) for module in model.modules()] == kinds


# ---------------------------------------------------------------- RMSNorm and SwiGLU
def test_rms_norm_and_its_gradient_by_hand():
    norm = LlamaRMSNorm(2, eps=0.0).requires_grad_(False)
    norm.weight.copy_(torch.tensor([2.0, 1.0]))
    lean(norm)
    assert type(norm) is LeanRMSNorm
    x = torch.tensor([[1.0, 7.0]], requires_grad=True)  # mean square 25
    y = norm(x)
    torch.testing.assert_close(y, torch.tensor([[0.4, 1.4]]))
    y[0, 0].backward()
    # d(2 x1 / r) with r² = (x1² + x2²)/2: 2/r - 2 x1²/(2 r³) = 0.4 - 1/125 and -2 x1 x2/(2 r³) = -7/125
    torch.testing.assert_close(x.grad, torch.tensor([[0.4 - 1 / 125, -7 / 125]]))


def test_swiglu_and_its_gradient_by_hand():
    gate, up = torch.tensor([0.0, 0.0], requires_grad=True), torch.tensor([3.0, -2.0], requires_grad=True)
    y = _SwiGLU.apply(gate, up)
    assert y.tolist() == [0.0, 0.0]  # silu(0) = 0
    y.sum().backward()
    assert gate.grad.tolist() == [1.5, -1.0] and up.grad.tolist() == [0.0, 0.0]  # silu'(0) = 1/2


def test_second_opinion_on_their_gradients():
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(_SwiGLU.apply, (gate, up))
    # the norm works in float32: finite differences of it are coarse
    weight = torch.rand(4)
    x = torch.randn(3, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _RMSNorm.apply(x, weight, 1e-6), (x,), eps=1e-2, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2"])
def test_which_families_have_them(family):
    """Gemma's norm scales by 1 + w, and its feed-forward has another activation: both stay."""
    small = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    config = getattr(transformers, f"{family}Config")(
        **small, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0
    )
    torch.manual_seed(0)
    model = toy.with_sft_adapter(getattr(transformers, f"{family}ForCausalLM")(config))
    plain = outputs(model)
    lean(model)
    kinds = {type(module) for module in model.modules()}
    assert ({LeanRMSNorm, LeanMLP} <= kinds) is (family != "Gemma2") and LeanLinear in kinds
    torch.testing.assert_close(outputs(model), plain, atol=1e-5, rtol=1e-3)


# ---------------------------------------------------------------- the last layer
def test_the_last_layer_works_where_somebody_reads():
    """Three of six positions are read: the same outputs and gradients, half the products of the last layer."""
    model = toy.with_sft_adapter(toy.build_model())
    ids = torch.tensor([[toy.C, toy.D, toy.A, toy.B, toy.E, toy.A]])

    def run():
        model.zero_grad()
        logits = model(ids).logits[:, -3:]
        logits.square().mean().backward()
        return torch.cat([x.flatten() for x in (logits, *(p.grad for p in model.parameters() if p.requires_grad))])

    plain = run()
    tail, seen = Tail(Trunk(model)), []
    down = model.get_base_model().model.layers[1].mlp.down_proj
    down.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    with tail.reads(3):
        torch.testing.assert_close(run(), plain, atol=1e-6, rtol=1e-4)
    run()
    assert seen == [3, 6]
