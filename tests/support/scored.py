"""What rewards with models are tried on: texts, a tokenizer trained on them, models of random weights."""

import math

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = ["the cat =>", "the dog =>", "a 猫 =>", "no =>"]
COMPLETIONS = [" sat on the mat", " ran", " 👍 and then it went on and on and on for a long time", ""]


def make_tokenizer(pad="<pad>", **options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*PROMPTS, *COMPLETIONS], trainer)
    options = {"pad_token": pad, "padding_side": "left", "model_max_length": 128} | options
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", **options)


def tiny_config(**options):
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return LlamaConfig(**sizes, **heads, pad_token_id=0, bos_token_id=1, eos_token_id=2, **options)


V = 320  # size of the vocabulary
NOTHING = -math.log(V)


def make_model(seed=7, **options):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config(**options)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # far from uniform, so that a wrong token shows
    return model


def by_hand(model, before, said):
    """Mean log p of the ids `said` after the ids `before`: one sequence, no padding, step by step."""
    total = 0.0
    for t, token in enumerate(said):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + said[:t]])).logits[0, -1]
        total += logits.double().log_softmax(-1)[token].item()
    return total / len(said)


def ids(text):
    return make_tokenizer()(text)["input_ids"]
