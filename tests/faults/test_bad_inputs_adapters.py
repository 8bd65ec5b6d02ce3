"""Bad adapters, critics and reward models, through the front door."""

from catalogue import Case, both, cases, check, cut, edit, file
from spoilers import adapter, model, pickled, saved, tokenizer, without

pytest_plugins = ["places"]

LEARNED = {"rewards": [{"name": "learned", "path": "reward"}]}


def learned(name: str, *says: str, make=None, path: str = "reward", **options) -> Case:
    reward = {"name": "learned", "path": path} | options
    return Case(name, says, "ppo", {"rewards": [reward]}, make)


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
        "truncated or damaged",
        make=cut("sft/adapter_model.safetensors"),
        adapter_path="sft",
    ),
    model(
        "truncated adapter for the reward model",
        "sft/adapter_model.safetensors",
        "truncated or damaged",
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
        "truncated or damaged",
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
        "truncated or damaged",
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


@cases(*ADAPTERS, *CRITICS, *REWARDS)
def test_bad_adapters(door, place, case):
    check(door, place, case)
