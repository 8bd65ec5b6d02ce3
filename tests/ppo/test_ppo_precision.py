"""PPO on bases of 16 and 4 bits and of other architectures: the ratio starts at 1 and the KL at 0."""

import pytest
import torch
import toy
from toy import EOS, PAD


@pytest.mark.parametrize("setting", ["bfloat16 base", "bfloat16 autocast", "float32 head"])
def test_sixteen_bits_keep_ratio_one_and_float32_values(tmp_path, setting):
    model = toy.build_model()
    model = model if setting == "bfloat16 autocast" else model.to(torch.bfloat16)
    trainer = toy.make_trainer(
        tmp_path,
        model,
        bf16=setting == "bfloat16 autocast",
        cast_lm_head_to_fp32=setting == "float32 head",
        learning_rate=0.0,
        logging_steps=1,
    )
    batch = toy.sample(trainer)
    for name in ("advantages", "returns", "old_values", "old_per_token_logps"):
        assert batch[name].dtype == torch.float32, name
    trainer.journal.read()
    trainer.train()
    assert {p.dtype for p in toy.learned(trainer).values()} == {torch.float32}
    assert toy.logged(trainer, "kl") == [0.0] and toy.logged(trainer, "ratio/max") == [1.0, 1.0]


def test_a_four_bit_base_starts_at_its_reference(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    toy.build_model(hidden_size=256, intermediate_size=768, num_attention_heads=4).save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=quantization, dtype=torch.float32
    )
    trainer = toy.make_trainer(
        tmp_path, toy.with_sft_adapter(model), learning_rate=0.0, kl_coef=0.1, max_completion_length=3
    )
    trainer.train()
    # TRL rounds what is trainable on a quantized base to bfloat16: policy, critic and head must not be
    assert {p.dtype for p in toy.learned(trainer).values()} == {torch.float32}
    assert toy.logged(trainer, "kl") == [0.0]
    assert toy.logged(trainer, "ratio") == pytest.approx([1.0], abs=1e-5)


@pytest.mark.parametrize("family", ["opt", "bloom", "gpt2", "mixtral"])
def test_other_architectures_keep_ratio_one(tmp_path, family):
    """OPT drops out by a number in its layers, Bloom has no positions, GPT-2 has Conv1D layers, Mixtral's routers have
    noise while they learn."""
    import transformers as t

    ids = {"vocab_size": 9, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS}
    small = {"n_layer": 2, "n_head": 2}
    opt = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 2}
    mixtral = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    mixtral |= {"num_key_value_heads": 1, "num_local_experts": 4, "router_jitter_noise": 0.3}
    torch.manual_seed(0)
    model = {
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**ids, **mixtral)),
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(**ids, **opt, num_attention_heads=2, dropout=0.5, layerdrop=0.5, max_position_embeddings=32)
        ),
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(**ids, **small, hidden_size=16)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**ids, **small, n_embd=16, n_positions=32)),
    }[family]()
    trainer = toy.make_trainer(tmp_path, model, learning_rate=0.0, logging_steps=1)
    trainer.train()
    assert toy.logged(trainer, "ratio/max") == pytest.approx([1.0, 1.0], abs=1e-5)
    assert toy.logged(trainer, "kl") == pytest.approx([0.0], abs=1e-6)
    # positions and masks: one row of the batch alone
    batch = toy.sample(trainer)
    prompt, ids = toy.real_prompts(batch)[0], toy.real(batch)[0]
    by_hand = toy.hand_logprobs(trainer.model, prompt, ids)
    torch.testing.assert_close(batch["old_per_token_logps"][0, : len(ids)].double(), by_hand, atol=1e-5, rtol=1e-5)
