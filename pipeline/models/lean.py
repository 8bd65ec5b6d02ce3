"""Layers of a decoder with no more passes over memory, and no more kept for the backward pass, than formulas need.

- LoRA on a linear layer: PEFT computes W x, A x, B (A x), the product with the scale and the sum one after the other,
  five results as large as the layer's output, and with 16-bit weights casts between them. The small products can be
  added into the large one by the matrix product itself, and the backward pass needs nothing but x and A x.
- RMSNorm: autograd keeps x in float32 and what comes of each step; x as it came and one number a row are enough.
- SwiGLU: silu(gate) is computed again in the backward pass instead of being kept.

The numbers are those of PEFT and transformers up to rounding (tests/models/test_lean.py). On a GPU, Liger's kernels
(`use_liger_kernel`) do the same for the last two.
"""

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm


# ---------------------------------------------------------------- LoRA
class _LoRAProduct(torch.autograd.Function):
    """y = x Wᵀ + b + s (x Aᵀ) Bᵀ (Hu et al. 2021, arXiv 2106.09685, eq. 3) with W and b frozen.

    Args: x (..., in), weight (out, in), bias (out,) or None, A (r, in), B (out, r), scale s. Returns (..., out).
    """

    @staticmethod
    def forward(ctx, x, weight, bias, A, B, scale):
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ A.to(x.dtype).T  # (N, r)
        y = nn.functional.linear(x, weight, bias)
        y.view(-1, y.shape[-1]).addmm_(low, B.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(rows, low, weight, A, B)
        ctx.scale, ctx.shape = scale, x.shape
        return y  # not a view, which a model could not change in place

    @staticmethod
    def backward(ctx, grad):
        rows, low, weight, A, B = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = (grad @ B.to(grad.dtype)).mul_(ctx.scale)
        grad_x = grad_A = grad_B = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            grad_x.addmm_(grad_low, A.to(grad.dtype))
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[3]:
            grad_A = (grad_low.T @ rows).to(A.dtype)
        if ctx.needs_input_grad[4]:
            grad_B = (grad.T @ low).to(B.dtype).mul_(ctx.scale)
        return grad_x, None, None, grad_A, grad_B, None


class LeanLinear(Linear):
    """PEFT's LoRA layer; where one plain adapter is active on a plain frozen layer, in the short form."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        name = self._plain_adapter()
        dtype = self._dtype_of_products(x) if name is not None and not (args or kwargs) else None
        if dtype is None:
            return super().forward(x, *args, **kwargs)
        base, device = self.base_layer, x.device.type
        A, B = self.lora_A[name].weight, self.lora_B[name].weight
        with torch.autocast(device, enabled=False):
            bias = None if base.bias is None else base.bias.to(dtype)
            return _LoRAProduct.apply(x.to(dtype), base.weight.to(dtype), bias, A, B, self.scaling[name])

    def _plain_adapter(self) -> str | None:
        """The one active adapter; None where the short form does not hold."""
        active = self.active_adapters
        if len(active) != 1 or self.disable_adapters or self.merged or active[0] not in self.lora_A:
            return None
        name = active[0]
        dropout = self.lora_dropout[name]
        drops = self.training and getattr(dropout, "p", 0.0) > 0
        special = name in self.lora_variant or self.lora_bias[name] or self.base_layer.weight.requires_grad
        return None if drops or special else name

    def _dtype_of_products(self, x: Tensor) -> torch.dtype | None:
        """The base's, whatever the adapter's: with 16 bits of it the sum has no more. None: leave it to PEFT."""
        if torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype if x.dtype == self.base_layer.weight.dtype else None


# ---------------------------------------------------------------- RMSNorm
class _RMSNorm(torch.autograd.Function):
    """y = w · x / sqrt(mean(x²) + ε), in float32 with w frozen (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4).

    Args: x (..., H), weight (H,). Returns (..., H).
    """

    @staticmethod
    def forward(ctx, x, weight, epsilon):
        normed = x.float()
        scale = torch.rsqrt(normed.square().mean(dim=-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, scale, weight)
        return weight * (normed * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, scale, weight = ctx.saved_tensors
        normed = x.float() * scale
        grad = (grad * weight).float()
        along = (grad * normed).mean(dim=-1, keepdim=True)
        return grad.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), None, None


class LeanRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or not x.requires_grad:
            return super().forward(x)
        return _RMSNorm.apply(x, self.weight, self.variance_epsilon)


# ---------------------------------------------------------------- SwiGLU
class _SwiGLU(torch.autograd.Function):
    """silu(gate) · up (Shazeer 2020, arXiv 2002.05202, eq. 6, without the linear layers). All of one shape."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        grad_up = nn.functional.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


class LeanMLP(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(_SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))


# ---------------------------------------------------------------- all of a model
def lean(model: nn.Module) -> None:
    """Gives the layers of `model` the short forms. What is quantised, or computes something else, stays as it is."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.__class__ = LeanLinear
        elif _computes(module, LlamaRMSNorm):
            module.__class__ = LeanRMSNorm
        elif _computes(module, LlamaMLP) and isinstance(module.act_fn, SiLUActivation):
            module.__class__ = LeanMLP


def _computes(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does to the letter what Llama's does: most models of transformers have copies of its code."""
    own, theirs = (getattr(x.forward, "__code__", None) for x in (type(module), kind))
    parts = ("co_code", "co_names", "co_varnames", "co_freevars")
    return own is not None and all(getattr(own, part) == getattr(theirs, part) for part in parts)
