"""A model of many kinds: float32 or bfloat16, 4-bit or not."""

import pytest
import toy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl.trainer.utils import add_fused_lm_head


def build(dtype, bits=None, folder=None, targets="all-linear"):
    """A model with grouped-query attention and LoRA; quantised when `bits` says so."""
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = toy.build_model(**sizes, vocab_size=256, max_position_embeddings=128).to(dtype)
    if bits:
        pytest.importorskip("bitsandbytes")
        model.save_pretrained(folder)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return toy.with_sft_adapter(model, r=16, target_modules=targets)
