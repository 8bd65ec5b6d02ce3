"""Attention over short rows in bfloat16 on a CPU.

PyTorch's fused kernel is made for long rows. At 80 tokens in bfloat16 its forward and backward take three times as
long as the plain products, and one decoding step seven times (docs/performance.md has the figures and the command).
Everything else goes through transformers' `sdpa` as before.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHORT_ROWS = "sdpa_short_rows"
_LONGEST = 2**16  # queries x keys; beyond it the plain products would hold more than they save
_PLAIN = {"position_ids", "cache_position", "use_cache", "output_attentions", "is_causal", "dropout", "sliding_window"}


def attend(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling=None, **kwargs):
    """softmax(q kᵀ · scaling) v (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    Args: query (B, H, Tq, D), key and value (B, Hkv, Tk, D), attention_mask (B or 1, H or 1, Tq, Tk), bool (True: is
        seen) or added; None: causal.

    Returns: (B, Tq, H, D), and None where other implementations have the weights.
    """
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16 and not kwargs.get("dropout")
    special = any(x is not None for name, x in kwargs.items() if name not in _PLAIN)
    if not plain or special or query.shape[2] * key.shape[2] > _LONGEST:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    B, H, Tq, D = query.shape
    grouped = (B, key.shape[1], -1)  # the queries that share a head's keys lie behind each other: no key is repeated
    query = query * (D**-0.5 if scaling is None else scaling)
    scores = (query.reshape(*grouped, D) @ key.transpose(-1, -2)).view(B, H, Tq, -1)
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and is_causal and query.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    out = scores.softmax(dim=-1).view(*grouped, scores.shape[-1]) @ value
    return out.view(B, H, Tq, D).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHORT_ROWS, attend)
AttentionMaskInterface.register(SHORT_ROWS, sdpa_mask)


def uses_short_rows(attention: str | None, device: torch.device, dtype: torch.dtype, length: int = 1) -> bool:
    """Whether rows of `length` tokens go through the plain products where `attention` is the model's own."""
    return (attention, device.type, dtype) == ("sdpa", "cpu", torch.bfloat16) and length * length <= _LONGEST


def use_short_rows(model) -> None:
    """Gives a model in bfloat16 on a CPU that uses `sdpa` the attention of this module; others stay as they are."""
    if uses_short_rows(model.config._attn_implementation, model.device, model.dtype):
        model.set_attn_implementation(SHORT_ROWS)
