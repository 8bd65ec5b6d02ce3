"""What bitsandbytes does to 4-bit weights on a CPU, and what must not happen to them."""

import torch


def never_repack(model: torch.nn.Module) -> None:
    """Keeps the 4-bit weights of `model` as they were quantised; call it before the first pass.

    On a CPU with AVX512-BF16, bitsandbytes (0.50) rewrites a layer's weights in place at its first pass in eval mode
    without gradient, for a faster kernel. It rounds the scales to bfloat16 and undoes nested quantisation, so the base
    is not the one that was loaded; and the kernel has no derivative, so that whatever trains afterwards gets no
    gradient through the base, with no more than a warning of torch. An evaluation before training is enough for that.
    """
    for layer in model.modules():
        if getattr(layer, "support_avx512bf16_for_cpu", False):
            if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
                layer.state_dict()  # bitsandbytes writes it back before it is saved
            layer.support_avx512bf16_for_cpu = False
