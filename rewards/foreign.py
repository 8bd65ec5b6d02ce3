"""Models from somebody else: what is refused before a library looks at it, since it could run code or is a pickle."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Of PEFT's settings those by which a file can name Python modules to be imported.
_NAMES_CODE = ("megatron_config",)  # with megatron_core, the name of a module that PEFT then imports


def adapter_problem(config: Mapping[str, Any]) -> str | None:
    """What is wrong with an `adapter_config.json`: another kind of adapter than LoRA, or one that names code."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        return f"is an adapter of the type {kind!r}, of which only LORA is read here"
    for key in _NAMES_CODE:
        if config.get(key):
            return f"names code to be loaded ({key}), which a file of settings must not do"
    return None


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
