"""Models, tokenizer and prompts of the benchmark, made on the spot from nothing but Python itself.

A *fixed* model never ends by itself, so every completion has exactly `Size.completion` tokens: the worst case. Of a
*natural* one each token is the last with a chance of about 1/24, whatever came before, so lengths are geometric, cut
at `Size.completion`. Both need no special settings of a trainer, because the chance stands in the weights: one
coordinate of all embeddings is a large constant that no layer writes to, so it is nearly the same number in every
final state, and the end token's logit is a multiple of it alone.
"""

import ast
import json
import math
import random
import re
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

PAD, EOS = 0, 1
WORDS = 2048  # tokens of the tokenizer; a larger vocabulary of the model is never sampled from
NEVER = -30.0  # a logit of no chance
ENDS = 1 / 24  # chance of the end token in a natural model
TEMPERATURE = 0.7  # TRL 1.12's default, on both sides
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
RECIPE = 1  # raise it when what is built changes


class Size(NamedTuple):
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = WORDS
    prompt: int = 32  # tokens
    completion: int = 48  # tokens at most


SIZES = {
    "tiny": Size(32, 2, 2, 1, 64, prompt=8, completion=12),
    "S": Size(128, 4, 4, 4, 512),
    "M": Size(512, 8, 8, 8, 1536),
    # layers, widths and vocabulary of SmolLM2-135M; the output layer is not tied to the embeddings
    "R": Size(576, 30, 9, 3, 1536, 49152, prompt=48, completion=64),
    # of Qwen2.5, likewise
    "0.5B": Size(896, 24, 14, 2, 4864, 151936, prompt=128, completion=256),
    "1.5B": Size(1536, 28, 12, 2, 8960, 151936, prompt=128, completion=256),
}
FORMS = ("fixed", "natural")


class Built(NamedTuple):
    size: Size
    base: Path  # model and tokenizer
    reward: Path  # a reward stage's folder: a random LoRA adapter with its score head
    prompts: list[str]  # each of exactly `size.prompt` tokens


def base_parameters(size: Size) -> int:
    """Weights of the language model."""
    narrow = size.hidden * size.kv_heads // size.heads
    layer = 2 * size.hidden**2 + 2 * size.hidden * narrow + 3 * size.hidden * size.intermediate + 2 * size.hidden
    return size.layers * layer + size.hidden + 2 * size.vocabulary * size.hidden


def adapter_parameters(size: Size) -> int:
    """Weights of one LoRA adapter on all linear layers."""
    narrow = size.hidden * size.kv_heads // size.heads
    widths = [(size.hidden, size.hidden, 2), (size.hidden, narrow, 2), (size.hidden, size.intermediate, 3)]
    return LORA["r"] * size.layers * sum((a + b) * many for a, b, many in widths)


def one_base(size: Size) -> int:
    """Weights of four roles on one base: adapters of policy, critic and reward, and the heads of the last two."""
    return base_parameters(size) + 3 * adapter_parameters(size) + 2 * size.hidden + 1


def build(folder: Path, size: str, form: str, dtype: str = "float32") -> Built:
    """The models of a size, form and precision in `folder`, made when they are not there yet."""
    shape, home = SIZES[size], Path(folder).absolute() / f"{size}-{form}-{dtype}"
    base, reward, prompts, stamp = home / "base", home / "reward", home / "prompts.json", home / "stamp"
    made = f"{RECIPE} {home}"
    if not stamp.exists() or stamp.read_text() != made:
        texts = docstrings()
        tokenizer = train_tokenizer(texts)
        home.mkdir(parents=True, exist_ok=True)
        prompts.write_text(json.dumps(prompts_of(texts, tokenizer, shape.prompt)), encoding="utf-8")
        language_model(shape, form).to(getattr(torch, dtype)).save_pretrained(base)
        for path in (base, reward):
            tokenizer.save_pretrained(path)
        reward_adapter(base).save_pretrained(reward)
        stamp.write_text(made)
    return Built(shape, base, reward, json.loads(prompts.read_text(encoding="utf-8")))


def docstrings() -> list[str]:
    """The docstrings of the standard library's modules, white space made plain."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        found += [re.sub(r"\s+", " ", text) for text in map(ast.get_docstring, nodes) if text]
    return found


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `WORDS` tokens; pad 0, eos 1."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<eos>"]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def prompts_of(texts: list[str], tokenizer, length: int, most: int = 2000, seed: int = 0) -> list[str]:
    """Different beginnings of texts that have exactly `length` tokens, also when they are tokenized again."""
    cut = [ids for ids in tokenizer(texts, truncation=True, max_length=length)["input_ids"] if len(ids) == length]
    found = sorted({text for ids in cut if tokenizer(text := tokenizer.decode(ids))["input_ids"] == ids})
    random.Random(seed).shuffle(found)
    return found[:most]


def language_model(size: Size, form: str, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama in float32 whose completions never end (`fixed`) or end with chance `ENDS` (`natural`)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        # 1. Coordinate 0 of the residual stream: a constant, as large as all others together, written by no layer
        embeddings = model.model.embed_tokens.weight.normal_()
        embeddings[:, 0] = math.sqrt(size.hidden)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        # 2. What it is after the final norm, and what the end token competes with
        head = model.lm_head.weight
        head[:, 0] = 0
        states = model.model(torch.randint(EOS + 1, WORDS, (8, size.prompt))).last_hidden_state.flatten(0, 1)
        constant = states[:, 0].mean()
        others = torch.logsumexp(states @ head[EOS + 1 : WORDS].T / TEMPERATURE, dim=-1).mean()
        # 3. Odds of 1 : 23 against all others, or none
        ends = NEVER if form == "fixed" else TEMPERATURE * (others - math.log(1 / ENDS - 1))
        for rows, logit in ((slice(PAD, EOS), NEVER), (slice(EOS, EOS + 1), ends), (slice(WORDS, None), NEVER)):
            head[rows] = 0
            head[rows, 0] = logit / constant
    return model


def reward_adapter(base: Path, seed: int = 1):
    """A random LoRA adapter with a score head on `base`, as the reward-model stage saves it."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype="auto")
    model.config.pad_token_id = PAD
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **LORA))
