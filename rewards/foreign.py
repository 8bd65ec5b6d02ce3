"""Models from somebody else: what is refused before a library looks at it, since it could run code or is a pickle, or
since what it says would not be what it says under PEFT."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HEADS = ("score", "classifier")  # what transformers calls the last layer of a sequence classifier
# Of PEFT's settings those by which a file can name Python modules to be imported.
_NAMES_CODE = ("megatron_config",)  # with megatron_core, the name of a module that PEFT then imports
# PEFT's settings of a LoRA adapter that are read for what they say; each is in tests/models/test_foreign_adapters.py.
_OF_THE_FILE = ("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode")
_LORA = (
    *("task_type", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters", "fan_in_fan_out"),
    *("use_rslora", "use_dora", "lora_bias", "init_lora_weights"),
)
_ASIDE = ("bias", "modules_to_save", "trainable_token_indices")  # see `beside_lora`
# Say nothing without one of those that are refused, or of an initialization that is over.
_NOTHING = ("megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config")
_KNOWN = {*_OF_THE_FILE, *_LORA, *_ASIDE, *_NOTHING, "runtime_config"}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # of the adapter's weights alone
_MOVING_STARTS = ("pissa", "olora")  # take the adapter out of the base's weights; PEFT does it again when it loads


def adapter_problem(config: Mapping[str, Any]) -> str | None:
    """Why an adapter with the settings of `adapter_config.json` is read nowhere: it is of another kind than LoRA,
    names code, or cannot be restored from its file. None: nothing is wrong with it."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        kind = getattr(kind, "value", kind)
        return f"is an adapter of the type {kind!r:.100}, of which only LORA is read here: give a LoRA adapter"
    for key in _NAMES_CODE:
        if config.get(key):
            return f"names code to be loaded ({key}), which a file of settings must not do: give a LoRA adapter"
    for key, value in config.items():
        if key not in _KNOWN and value:
            return f"sets {key}, which is more than plain LoRA and is not read here: give an adapter without it"
    start = _start_of(config)
    if start not in (*_PLAIN_STARTS, *_MOVING_STARTS):
        return (
            f"has init_lora_weights: {start}, which moved a part of the base into the adapter, and PEFT cannot do the "
            "same again from this file: save it as plain LoRA (save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )
    return None


def beside_lora(config: Mapping[str, Any]) -> str | None:
    """The setting by which an adapter changes more of its base than LoRA does, such as `bias: all`: it cannot stand
    on one base together with others. None: it is plain LoRA."""
    if (found := stays_on(config)) is not None:
        return found
    whole = [name for name in config.get("modules_to_save") or [] if name not in HEADS]
    if whole:
        return f"modules_to_save: {', '.join(whole)}"
    return "trainable_token_indices" if config.get("trainable_token_indices") else None


def stays_on(config: Mapping[str, Any]) -> str | None:
    """The setting by which an adapter changes the base's own weights, which stay changed when it is switched off."""
    if config.get("bias") not in (None, "none"):
        return f"bias: {config['bias']}"
    start = _start_of(config)
    return f"init_lora_weights: {start}" if start in _MOVING_STARTS else None


def _start_of(config: Mapping[str, Any]) -> Any:
    start = config.get("init_lora_weights", True)
    return start.lower() if isinstance(start, str) else start


def is_missing_folder(path: str) -> bool:
    """Whether `path` is written as a folder and is none, so that nobody asks the Hub for what is misspelt."""
    return not os.path.isdir(path) and path.startswith(("/", ".", "~", "runs/"))


def pickle_in(folder: Path) -> str | None:
    """The weights in `folder` or below that are a pickle and have no safetensors beside them; None when there are
    none. Checkpoints and settings of a Trainer are no weights."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in PICKLES or "training_args" in path.name:
            continue
        if any(part.startswith("checkpoint-") for part in path.relative_to(folder).parts):
            continue
        if not any(path.parent.glob("*.safetensors")):
            return str(path.relative_to(folder))
    return None
