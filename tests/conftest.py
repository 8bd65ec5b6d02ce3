"""Fixtures for all tests: a byte-level tokenizer and a random two-layer Llama, made on the spot."""

import gc
import os
import signal
from pathlib import Path

# Before anything of the Hugging Face stack is imported: the tests never reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# A shell starts what runs in its background with Ctrl-C ignored, and a program started from here would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What is imported by now stays. Without this, `gc.collect()`, which every `Trainer.train()` calls, would walk
    through all of it and take longer than the few steps that a test trains."""
    gc.collect()
    gc.freeze()


SPECIAL = ["<pad>", "<s>", "</s>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def shared_data(*parts: str) -> Path:
    """A file of the shared data folder (env PLUMBLINE_SHARED, or `../shared` beside the repository)."""
    root = os.environ.get("PLUMBLINE_SHARED") or Path(__file__).resolve().parents[1] / ".." / "shared"
    return Path(root, "data", *parts)


@pytest.fixture(scope="session")
def shared():
    """`shared("hh", "harmless-base.jsonl.gz")` is the path of that file; the test skips where it is absent."""

    def find(*parts: str) -> Path:
        path = shared_data(*parts)
        if not path.exists():
            pytest.skip(f"{'/'.join(parts)} of the shared data is not here (set PLUMBLINE_SHARED)")
        return path

    return find


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, pad 0, bos 1, eos 2, all three separate; with a chat template."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A random Llama: 2 layers, hidden size 32, 259 tokens; about 40 thousand parameters."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(SPECIAL) + 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes))


@pytest.fixture(scope="session")
def warm():
    """Runs programs in forks of one process that has the libraries imported."""
    from warm import Warm

    opened = Warm()
    yield opened
    opened.close()


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fresh byte-level tokenizer, free to change."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    """A saved model folder (safetensors and tokenizer). Do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "base"
    build_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
