"""Bad base models and tokenizers, through the front door: one sentence with the folder, and nothing left behind."""

import json

from catalogue import both, cases, check, cut, edit, file
from spoilers import gone, model, pickled, saved, tokenizer, without

pytest_plugins = ["places"]


REMOTE = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"}
EVIL = "from pathlib import Path\nPath('code_was_run').touch()\n"

BASES = [
    model("no such folder", "runs/none", "no such model folder", "misspelt", model_name_or_path="runs/none"),
    model("no model named", "model_name_or_path is not set", "folder or a Hub name", model_name_or_path=None),
    model("a file for a folder", "sft.jsonl is a file", "folder of the model", model_name_or_path="sft.jsonl"),
    model(
        "an empty folder",
        "empty holds no model",
        "config.json",
        make=lambda place: (place / "empty").mkdir(),
        model_name_or_path="empty",
    ),
    model(
        "a hub name that is not there",
        "somebody/nothing",
        "the Hub does not give it",
        model_name_or_path="somebody/nothing",
    ),
    model("no weights", "base has no model weights", ".safetensors", make=gone("base/model.safetensors")),
    model(
        "pickled weights",
        "base",
        "pickle (pytorch_model.bin)",
        "run code",
        "safetensors",
        make=pickled("base", "model.safetensors", "pytorch_model.bin"),
    ),
    model(
        "truncated weights",
        "base/model.safetensors",
        "truncated or damaged",
        "again",
        make=cut("base/model.safetensors"),
    ),
    model(
        "weights of nothing",
        "base/model.safetensors",
        "truncated or damaged",
        make=file("base/model.safetensors", b""),
    ),
    model(
        "weights that are text",
        "base/model.safetensors",
        "truncated or damaged",
        make=file("base/model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ),
    model(
        "a shard that is missing",
        "model-00002-of-00002.safetensors",
        make=both(
            file(
                "base/model.safetensors.index.json",
                json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}),
            ),
            lambda place: (place / "base/model.safetensors").rename(place / "base/model-00001-of-00002.safetensors"),
        ),
    ),
    model(
        "weights of another shape",
        "base: lm_head.weight",
        "[259, 32]",
        "[259, 64]",
        "config.json",
        make=edit("base/config.json", hidden_size=64),
    ),
    model(
        "weights with layers missing",
        "base",
        "missing",
        "model.layers.1",
        make=without("base/model.safetensors", "layers.1."),
    ),
    model("broken config", "base/config.json", "JSON", make=cut("base/config.json")),
    model("config that is a list", "base/config.json", "wants a mapping", make=file("base/config.json", "[]")),
    model("config without a model type", "base", "model_type", make=edit("base/config.json", model_type=None)),
    model(
        "unknown architecture", "base", "model type `nonsense`", make=edit("base/config.json", model_type="nonsense")
    ),
    model(
        "remote code asked for",
        "base brings Python code of its own",
        "trust_remote_code: true",
        make=both(edit("base/config.json", **REMOTE), file("base/evil.py", EVIL)),
    ),
    model(
        "context shorter than a row",
        "longest row has",
        "context is 16",
        "set max_length to 16",
        make=saved("base", max_position_embeddings=16),
    ),
    model(
        "context shorter than prompt and completion",
        "context is 32",
        "prompt",
        "max_completion_length",
        make=saved("base", max_position_embeddings=32),
        recipe="ppo",
        adapter_path=None,
        max_completion_length=30,
    ),
    model("no flash attention", "attn_implementation", "flash_attention_2", attn_implementation="flash_attention_2"),
]
TOKENIZERS = [
    model(
        "no tokenizer",
        "no usable tokenizer base",
        make=both(gone("base/tokenizer.json"), gone("base/tokenizer_config.json")),
    ),
    model("broken tokenizer", "no usable tokenizer base", make=cut("base/tokenizer.json")),
    model(
        "tokenizer without an end token",
        "base",
        "no end-of-sequence token",
        "set eos_token",
        make=tokenizer(eos_token=None),
    ),
    model(
        "vocabulary larger than the model",
        "base",
        "261 tokens but the model only 259 embeddings",
        make=tokenizer(tokens=("<a>", "<b>")),
    ),
    model(
        "messages without a chat template",
        "no chat template",
        "chat_template_path",
        make=both(
            gone("base/chat_template.jinja"),
            file(
                "sft.jsonl",
                [
                    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": str(i)}]}
                    for i in range(4)
                ],
            ),
        ),
        eval_fraction=None,
    ),
]


@cases(*BASES, *TOKENIZERS)
def test_bad_models(door, place, case):
    check(door, place, case)
