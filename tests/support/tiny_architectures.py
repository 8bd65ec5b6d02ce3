"""A tiny random model of every architecture that transformers has a causal model for, or PEFT has targets for, made
from the library's own config classes.

Every number of a config whose name is known to be a size becomes small; two layers stay, of two kinds where the
architecture has several (a sliding window and full attention, say). `CHANGES` has what that does not give.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

# Models of images and text that have no entry among the causal ones, one of each kind
MULTIMODAL = ("idefics3", "internvl", "llava", "mistral3", "paligemma", "qwen2_5_vl", "qwen3_vl")
ARCHITECTURES = tuple(sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *PEFT_TARGETS, *MULTIMODAL}))
# transformers makes no model of these: it gives a class for one half another config than its own, wants a package that
# is not here, or has no class at all. Their folders have a config and a file of weights without any.
WITHOUT_MODEL = {"gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "mt5", "musicgen", "musicgen_melody", "t5"}
VOCABULARY = 280  # the 259 tokens of conftest.build_tokenizer, and room for those that stand for images
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_SIZES = {
    name: number
    for number, names in (
        (
            VOCABULARY,
            "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size audio_vocab_size",
        ),
        (
            32,
            "hidden_size d_model n_embd emb_dim embed_dim embedding_dim embedding_size hidden_size_global lru_width "
            "input_embedding_size output_embedding_size attention_hidden_size ple_embed_dim mamba_d_ssm "
            "projector_input_dim projector_output_dim vision_output_dim out_hidden_size backbone_hidden_size "
            "base_channels output_channels nemo_conv_channels ext_pw_out_channel depthwise_separable_out_channel "
            "router_hidden_size adapter_in_dim adapter_out_dim adapter_input_size",
        ),
        (
            64,
            "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_ff dff dim_ff d_inner "
            "feed_forward_size intermediate_size_mlp dense_intermediate_size mlp_dim "
            "shared_experts_intermediate_size",
        ),
        (
            16,
            "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
            "moe_shared_expert_intermediate_size word_embed_proj_dim q_lora_rank o_lora_rank "
            "hidden_size_per_layer_input",
        ),
        (
            8,
            "head_dim qk_rope_head_dim d_kv dim_head d_head swa_head_dim linear_key_head_dim linear_value_head_dim "
            "global_head_dim v_head_dim qk_nope_head_dim index_head_dim kv_channels attention_head_dim "
            "attention_head_size state_size ssm_state_size mamba_d_state mamba_dt_rank time_step_rank kv_lora_rank "
            "rotary_dim laurel_rank adapter_rank hc_lowrank chunk_size mamba_chunk_size block_size mamba_head_dim",
        ),
        (
            4,
            "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
            "attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
            "linear_num_value_heads linear_num_heads index_n_heads num_experts n_routed_experts num_local_experts "
            "moe_num_experts mamba_n_heads mamba_num_heads n_mamba_heads sliding_window window_size "
            "sliding_window_size attention_window_size attention_chunk_size local_attention keep_window_size",
        ),
        (
            2,
            "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads linear_num_key_heads "
            "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k num_hidden_layers n_layer n_layers "
            "num_layers decoder_layers encoder_layers num_decoder_layers num_encoder_layers depth num_blocks "
            "num_layers_per_stack",
        ),
        (
            1,
            "n_group topk_group first_k_dense_replace num_dense_layers moe_layer_start_index num_kv_shared_layers "
            "n_groups mamba_n_groups",
        ),
        (256, "max_position_embeddings n_positions n_ctx max_seq_len context_length"),
    )
    for name in names.split()
}
_OFTEN_UNSET = {"sliding_window", "head_dim", "intermediate_size", "num_key_value_heads", "ffn_dim", "ffn_hidden_size"}

_LATENT = {"num_key_value_heads": 4}  # multi-head latent attention: as many keys as queries
_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"]}
_ROTARY = {"rope_theta": 1e4, "rope_type": "default"}
_SHARED_KEYS = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_SHARED_KEYS |= {"num_kv_shared_layers": 2, "intermediate_size": 64}
_SHARED_BLOCKS = {"num_hidden_layers": 3, "layers_block_type": ["hybrid", "linear_attention", "hybrid"]}
_SHARED_BLOCKS |= {"attention_hidden_size": 64, "attention_head_dim": 16}
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys("axk1 axk2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa".split(), _LATENT),
    **dict.fromkeys("minicpm3 youtu".split(), _LATENT),
    "bailing_hybrid": _LATENT | {"num_expert_group": 1},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": _WINDOWED | {"rope_parameters": dict.fromkeys(_WINDOWED["layer_types"], _ROTARY)},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v4": {"head_dim": 64, "index_head_dim": 64},
    "deepseek_v2": _LATENT | {"num_experts_per_tok": 2},
    "dots1": _WINDOWED | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": _LATENT
    | {"layer_types": ["sliding_attention", "indexed_attention"], "swa_head_dim": 16, "swa_qk_nope_head_dim": 8}
    | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_v_head_dim": 8}
    | {"swa_q_lora_rank": 16, "swa_kv_lora_rank": 8},
    "emu3": {"vocabulary_map": {"<image>": 262}},
    "gemma3n_text": _SHARED_KEYS | {"activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0]},
    "gemma4_text": _SHARED_KEYS,
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"]},
    "kimi_linear": _LATENT | {"linear_head_dim": 16},
    "longcat_flash": _LATENT | {"zero_expert_num": 1},
    "mamba2": {"num_heads": 8},
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4}
    | {"indexer_compress_ratio": 2, "ple_layer_ids": [1], "ngram_vocab_size_base": 50, "split_ngram_parts": 1}
    | {"heads_per_ngram": 2},
    "qwen2_5_vl_text": {"rope_parameters": _ROTARY | {"mrope_section": [1, 1, 2]}},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_shape": (16, 16), "axial_pos_embds_dim": (16, 16), "attn_layers": ("local", "lsh")},
    "roc_bert": {f"{part}_{size}": 20 for part in ("pronunciation", "shape") for size in ("vocab_size", "embed_dim")},
    "smollm3": {"no_rope_layers": [1, 0]},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2, "chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED_BLOCKS,
    "zamba2": _SHARED_BLOCKS | {"hybrid_layer_ids": [0, 2]},
}


def config_of(model_type: str, **changes) -> PreTrainedConfig:
    """A config of the class that transformers has for `model_type`, with small sizes."""
    cls = CONFIG_MAPPING[model_type]
    return cls(**_small(cls) | changes)


def build(model_type: str, seed: int = 0, **changes) -> PreTrainedModel:
    """The model of that config, as somebody publishes it: with its image tower, if it has one. Random weights, large
    enough for every part of it to matter."""
    auto = AutoModelForCausalLM
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        auto = AutoModelForImageTextToText
    elif model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        auto = AutoModelForMaskedLM
    torch.manual_seed(seed)
    model = auto.from_config(config_of(model_type, **changes)).eval()
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D":
                inputs = module.weight.shape[0 if type(module).__name__ == "Conv1D" else 1]
                scale = 0.5 if isinstance(module, nn.Embedding) else inputs**-0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=drawn) * scale)
        for name, parameter in model.named_parameters():
            if "expert" in name and parameter.ndim == 3:
                parameter.copy_(torch.randn(parameter.shape, generator=drawn) * parameter.shape[-1] ** -0.5)
    model.tie_weights()
    return model


def save(model_type: str, folder: str) -> None:
    """A folder with that model, as far as there is one."""
    if model_type in CONFIG_MAPPING and model_type not in WITHOUT_MODEL:
        build(model_type).save_pretrained(folder)
        return
    Path(folder).mkdir(parents=True)
    if model_type in CONFIG_MAPPING:
        config_of(model_type).save_pretrained(folder)
    else:  # of a model that brings its own code
        Path(folder, "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({"no": torch.zeros(1)}, Path(folder, "model.safetensors"), {"format": "pt"})


def targets_of(model_type: str) -> list[str]:
    """What an adapter is put on: every linear layer, but for those that PEFT refuses or does not read back."""
    return _TARGETS.get(model_type, ["all-linear"])


def settings_of(model_type: str) -> dict[str, Any]:
    """Settings of SFT and PPO that the architecture needs: without TRL's loss for the balance of experts where it
    does not know their number, or where there are none."""
    return {"router_aux_loss_coef": 0.0} if model_type in _NO_BALANCE else {}


_NO_BALANCE = {
    *("deepseek_v4", "doge", "flint", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
    *("llama4", "llama4_text", "phimoe"),
}
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_MLP = ["gate_proj", "up_proj", "down_proj"]
_TARGETS = {
    # what is no plain linear layer: routers, and products by groups
    "deepseek_v4": ["q_a_proj", "q_b_proj", "kv_proj", "o_b_proj", *_MLP],
    "llama4": [*_ATTENTION, *_MLP],
    "llama4_text": [*_ATTENTION, *_MLP],
    "phimoe": _ATTENTION,
    "nemotron_h": ["in_proj", *_ATTENTION, "up_proj", "down_proj"],
    "inkling2_text": _ATTENTION,  # PEFT does not read back all of the others
    "laguna": _ATTENTION,
    "falcon_h1": ["in_proj", "q_proj", "v_proj", "down_proj"],
    "falcon_mamba": ["in_proj", "x_proj"],
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
}


def _small(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """Arguments for a small config of that class."""
    config = cls(**_WITHOUT_THEM_NO_CONFIG.get(cls.model_type, {}))
    depth, found = getattr(config, "num_hidden_layers", None), {}
    for name, value in vars(config).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, PreTrainedConfig):
            found[name] = type(value)(**_small(type(value)))
        elif name in _SPECIAL:
            found[name] = _SPECIAL[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= VOCABULARY:
            found[name] = 262 + len(found) % 16
        elif name in _SIZES and (isinstance(value, int) or value is None and name in _OFTEN_UNSET):
            found[name] = _SIZES[name] if value is None else min(_SIZES[name], value)
        elif isinstance(value, list | tuple) and depth and len(value) == depth:
            found[name] = type(value)(_first_kinds(value))
    kinds = found.get("layer_types") or ()
    if len(set(kinds)) == 1 and hasattr(config, "use_sliding_window"):
        found |= {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 4}
        found["layer_types"] = ["full_attention", "sliding_attention"]
    if getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
        found["is_decoder"] = True
    return found | CHANGES.get(cls.model_type, {})


_WITHOUT_THEM_NO_CONFIG = {
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}


def _first_kinds(values: list | tuple, count: int = 2) -> list:
    """The first `count` values that differ, or where there are not so many the first ones."""
    different = list({str(value): value for value in values}.values())
    return different[:count] if len(different) >= count else list(values[:count])
