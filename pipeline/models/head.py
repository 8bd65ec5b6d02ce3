"""Log-probabilities of given tokens on a CPU, without logits of all of them at once.

TRL's fused head (`add_fused_lm_head`) is written for Triton. Without it, every position is scored, the prompt's and
the padding's too; the logits pass through memory some twenty times; and they are computed again in the backward
pass, whose products are in float32. At a vocabulary of 49,152 that is more than the layers below take
(docs/performance.md). Here the wanted positions alone are scored, a few rows at a time, and because only what comes in
needs a gradient, and that is linear in the gradient of log p, it is computed at once and nothing again.

The numbers are TRL's up to rounding (tests/models/test_head.py). On other devices TRL's own head runs.
"""

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from trl.trainer.utils import FusedCausalLMOutput

LOGITS_AT_ONCE = 6 * 2**20  # what a processor's cache holds
_SHAPES = 64  # rows are a multiple of it: oneDNN keeps memory for every shape that it has met


class _LogProbs(torch.autograd.Function):
    """log softmax(h Wᵀ / τ)[t] of each row, with W frozen; besides, without gradient, the entropy and whether t is
    the most likely token.

    With z = h Wᵀ / τ and p = softmax(z), d log p_t / dh = (W_t - p W) / τ.

    Args: hidden (N, H), weight (V, H), targets (N,), temperature τ. Returns three of (N,), float32 but for the last.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature):
        rows = max(1, LOGITS_AT_ONCE // len(weight))
        more = -len(hidden) % min(rows, _SHAPES)
        parts = (F.pad(hidden, (0, 0, 0, more)).split(rows), F.pad(targets, (0, more)).split(rows))
        learning = ctx.needs_input_grad[0]
        found = [_some(*part, weight, temperature, learning) for part in zip(*parts, strict=True)]
        logprobs, entropy, is_top1, slope = (torch.cat(x)[: len(hidden)] for x in zip(*found, strict=True))
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(entropy, is_top1)
        return logprobs, entropy, is_top1

    @staticmethod
    def backward(ctx, grad, *_):
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(slope.dtype), None, None, None


def _some(hidden: Tensor, targets: Tensor, weight: Tensor, temperature: float, learning: bool):
    """As `_LogProbs`, and the gradient of log p_t by `hidden`, (N, H), empty without `learning`."""
    z = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    if temperature != 1:
        z /= temperature
    top, best = z.max(dim=1, keepdim=True)
    z -= top
    at_target = z.gather(1, targets[:, None])[:, 0]
    exp = z.exp()
    total = exp.sum(dim=1)
    mean = (exp[:, None] @ z[:, :, None])[:, 0, 0] / total  # of z under p
    slope = hidden.new_empty(0, hidden.shape[1])
    if learning:  # the difference first: in 16 bits W_t less nearly W_t would leave little
        exp.scatter_add_(1, targets[:, None], -total[:, None])
        slope = ((exp.to(weight.dtype) @ weight) / (-temperature * total[:, None])).to(hidden.dtype)
    log_total = total.log()
    return at_target - log_total, log_total - mean, best[:, 0] == targets, slope


# Of a model's configuration: what else is done with its logits, and a mixture's balancing loss, which TRL adds
_MORE_WITH_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
    "output_router_logits",
)
_OTHERWISE = {"shift_labels", "num_items_in_batch", "output_router_logits"}  # asked of TRL's head


def _is_plain(head: nn.Module) -> bool:
    """Whether a head is a frozen matrix, whole and in this process."""
    weight = getattr(head, "weight", None)
    shared_out = isinstance(weight, DTensor) or hasattr(weight, "ds_id")  # by FSDP, by DeepSpeed
    plain = type(head) is nn.Linear and head.bias is None and not shared_out
    return plain and head.weight.device.type == "cpu" and not head.weight.requires_grad


def lean_head(model: nn.Module, temperature: float = 1.0) -> None:
    """Has `model(..., labels=..., fused_lm_head=True)`, which TRL has given it, use the head of this module where it
    holds: on a CPU, with a frozen head, of a model that does nothing else with its logits.

    Args:
        model: with `add_fused_lm_head`, before any adapters are around it.
        temperature: as it was given there.
    """
    theirs = model.forward
    config = model.config.get_text_config()

    plain = not any(getattr(config, name, None) for name in _MORE_WITH_LOGITS)

    @functools.wraps(theirs)
    def forward(self, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        asked = fused_lm_head and kwargs.get("labels") is not None and not _OTHERWISE & kwargs.keys()
        if not (asked and plain and _is_plain(self.get_output_embeddings())):
            return theirs(*args, fused_lm_head=fused_lm_head, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        states = self.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        mask = labels != -100
        weight = self.get_output_embeddings().weight
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        with torch.autocast("cpu", enabled=False):
            per_token = _LogProbs.apply(states[mask].to(dtype), weight.to(dtype), labels[mask], temperature)
        logprobs, entropy, is_top1 = (x.new_zeros(mask.shape).masked_scatter(mask, x) for x in per_token)
        return FusedCausalLMOutput(
            loss=-logprobs.sum() / mask.sum().clamp(min=1),
            log_probs=logprobs,
            entropy=entropy,
            is_top1=is_top1,
            label_mask=mask,
        )

    model.forward = types.MethodType(forward, model)
