"""Bad models and adapters, through the front door: each case one sentence with the folder, and nothing left behind."""

import json
import shutil
from pathlib import Path

import torch
from catalogue import Case, both, cases, check, cut, edit, file, save_adapter
from conftest import build_model, build_tokenizer
from safetensors.torch import load_file, save_file

pytest_plugins = ["places"]

LEARNED = {"rewards": [{"name": "learned", "path": "reward"}]}


def model(name: str, *says: str, make=None, recipe: str = "sft", **settings) -> Case:
    return Case(name, says, recipe, settings, make)


def learned(name: str, *says: str, make=None, path: str = "reward", **options) -> Case:
    reward = {"name": "learned", "path": path} | options
    return Case(name, says, "ppo", {"rewards": [reward]}, make)


def gone(path: str):
    return lambda place: shutil.rmtree(place / path) if (place / path).is_dir() else (place / path).unlink()


def pickled(folder: str, weights: str, pickle: str):
    """The weights as a pickle that would leave a file if anybody read it."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (Path("pickle_was_run"),))

    def make(place: Path) -> None:
        (place / folder / weights).unlink()
        torch.save({"weight": Trap()}, place / folder / pickle)

    return make


def saved(folder: str, **changes):
    """The base with `changes`."""
    return lambda place: build_model(seed=1, **changes).save_pretrained(place / folder)


def tokenizer(folder: str = "base", tokens: tuple = (), **special):
    """The tokenizer with special tokens changed and tokens added."""

    def make(place: Path) -> None:
        changed = build_tokenizer()
        for name, value in special.items():
            setattr(changed, name, value)
        changed.add_tokens(list(tokens))
        changed.save_pretrained(place / folder)

    return make


def adapter(folder: str, base: str = "base", task: str = "CAUSAL_LM", **changes):
    def make(place: Path) -> None:
        shutil.rmtree(place / folder)
        save_adapter(place / folder, base, task, **changes)

    return make


def without(path: str, part: str):
    """A safetensors file without the tensors whose name has `part`."""

    def make(place: Path) -> None:
        left = {key: value for key, value in load_file(place / path).items() if part not in key}
        save_file(left, place / path, {"format": "pt"})

    return make


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
        "truncated weights", "base/model.safetensors", "cut off or spoilt", "again", make=cut("base/model.safetensors")
    ),
    model(
        "weights of nothing", "base/model.safetensors", "cut off or spoilt", make=file("base/model.safetensors", b"")
    ),
    model(
        "weights that are text",
        "base/model.safetensors",
        "cut off or spoilt",
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
ADAPTERS = [
    model(
        "adapter of another base",
        "adapter sft was trained on the base base, not on other",
        "give base",
        make=both(saved("other"), tokenizer("other")),
        model_name_or_path="other",
        adapter_path="sft",
    ),
    model(
        "base trained again under its adapter",
        "sft was trained on other weights than now lie in its base base",
        "again",
        make=file("sft/summary.json", '{"base_fingerprint": "0123456789abcdef"}'),
        adapter_path="sft",
    ),
    model(
        "adapter of another shape",
        "adapter sft does not fit its base base",
        make=adapter("sft", hidden_size=16),
        adapter_path="sft",
    ),
    model(
        "adapter of another shape for the reward model",
        "adapter sft does not fit the base base",
        make=adapter("sft", hidden_size=16),
        recipe="reward",
    ),
    model(
        "adapter with weights missing",
        "adapter sft does not fit its base",
        make=without("sft/adapter_model.safetensors", "layers.1."),
        adapter_path="sft",
    ),
    model(
        "adapter without a base",
        "sft/adapter_config.json names no base model",
        "base_model_name_or_path",
        make=edit("sft/adapter_config.json", base_model_name_or_path=None),
        model_name_or_path=None,
        adapter_path="sft",
    ),
    model(
        "adapter whose base is gone",
        "belongs on the base ./gone, which is not there",
        "put it back",
        make=edit("sft/adapter_config.json", base_model_name_or_path="./gone"),
        model_name_or_path=None,
        adapter_path="sft",
    ),
    model(
        "adapter config broken",
        "sft/adapter_config.json",
        "JSON",
        make=cut("sft/adapter_config.json"),
        adapter_path="sft",
    ),
    model(
        "adapter of an unknown kind",
        "sft/adapter_config.json",
        "of the type",
        "NONSENSE",
        make=edit("sft/adapter_config.json", peft_type="NONSENSE"),
        adapter_path="sft",
    ),
    model(
        "a base for an adapter",
        "adapter_path base holds no LoRA adapter",
        "adapter_config.json is missing",
        adapter_path="base",
    ),
    model(
        "pickled adapter",
        "sft",
        "pickle (adapter_model.bin)",
        "safetensors",
        make=pickled("sft", "adapter_model.safetensors", "adapter_model.bin"),
        model_name_or_path=None,
        adapter_path="sft",
    ),
    model(
        "truncated adapter",
        "sft/adapter_model.safetensors",
        "cut off or spoilt",
        make=cut("sft/adapter_model.safetensors"),
        adapter_path="sft",
    ),
    model(
        "truncated adapter for the reward model",
        "sft/adapter_model.safetensors",
        "cut off or spoilt",
        make=cut("sft/adapter_model.safetensors"),
        recipe="reward",
    ),
    model(
        "lora modules that are not there",
        "lora_target_modules",
        "nonsense",
        "all-linear",
        lora_target_modules=["nonsense"],
    ),
    model("all weights from an adapter", "use_peft", "sft is an adapter", use_peft=False, adapter_path="sft"),
]
CRITICS = [
    model(
        "critic that is not there",
        "critic_path is runs/none",
        "leave critic_path out",
        recipe="ppo",
        critic_path="runs/none",
    ),
    model(
        "critic without a score head", "sft has no score head", "reward-model stage", recipe="ppo", critic_path="sft"
    ),
    model(
        "critic of another size",
        "reward",
        "hidden size 16",
        "hidden size 32",
        make=adapter("reward", task="SEQ_CLS", hidden_size=16),
        recipe="ppo",
        critic_path="reward",
    ),
    model(
        "critic of fewer layers",
        "The adapter in reward does not fit",
        make=adapter("reward", task="SEQ_CLS", num_hidden_layers=1),
        recipe="ppo",
        critic_path="reward",
    ),
    model(
        "truncated critic",
        "reward/adapter_model.safetensors",
        "cut off or spoilt",
        make=cut("reward/adapter_model.safetensors"),
        recipe="ppo",
        critic_path="reward",
    ),
]
REWARDS = [
    learned("reward model that is not there", "Reward 'learned'", "runs/none", "no such folder", path="runs/none"),
    learned(
        "reward path of a language model",
        "Reward 'learned'",
        "'base' holds no score head",
        "give a reward model",
        path="base",
    ),
    learned(
        "reward path of an sft adapter",
        "Reward 'learned'",
        "'sft' is an adapter of type CAUSAL_LM",
        "recipes/reward.py",
        path="sft",
    ),
    learned(
        "fresh score head",
        "Reward 'learned'",
        "'reward' was saved without its score head",
        "random",
        make=without("reward/adapter_model.safetensors", "score"),
    ),
    learned(
        "reward adapter without a base",
        "Reward 'learned'",
        "reward/adapter_config.json",
        "base_model_name_or_path",
        make=edit("reward/adapter_config.json", base_model_name_or_path=None),
    ),
    learned(
        "reward adapter config broken",
        "Reward 'learned'",
        "adapter_config.json",
        make=cut("reward/adapter_config.json"),
    ),
    learned(
        "truncated reward model",
        "Reward 'learned'",
        "reward",
        "cut off or spoilt",
        make=cut("reward/adapter_model.safetensors"),
    ),
    learned(
        "pickled reward model",
        "Reward 'learned'",
        "reward",
        "safetensors",
        make=pickled("reward", "adapter_model.safetensors", "adapter_model.bin"),
    ),
    learned(
        "reward model of another shape than its base",
        "Reward 'learned'",
        "reward",
        "does not fit",
        make=adapter("reward", task="SEQ_CLS", hidden_size=16),
    ),
]


@cases(*BASES, *TOKENIZERS, *ADAPTERS, *CRITICS, *REWARDS)
def test_bad_models(door, place, case):
    check(door, place, case)
