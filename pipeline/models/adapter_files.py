"""What is in an adapter's folder, put on a base as PEFT would put it, or refused by the name of the setting.

One base carries policy, reference, critic and reward model as adapters. That is exact for whatever LoRA can be asked
to do inside the base's modules. A setting that changes the base besides (`bias`, `modules_to_save`, …) would change it
for all of them; such an adapter is taken where it stands alone, and otherwise has to be merged into its base first.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import UserError, shortened
from pipeline.safety.commands import command
from pipeline.safety.weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter_config
from rewards.foreign import HEADS, adapter_problem, beside_lora, stays_on

PREFIX = "base_model.model."  # PEFT's, before the names that a module has in the base
HEAD = f"{PREFIX}score."  # where PEFT keeps the head of a SEQ_CLS or TOKEN_CLS adapter
_LORA = ".lora_"


def check_shares_base(adapter: str | Path) -> None:
    """Raises `UserError` when the adapter in a folder cannot stand on one base together with others."""
    config = read_adapter_config(adapter)
    if setting := beside_lora(config):
        raise UserError(
            f"{adapter} has {setting}, which changes the base itself, that policy, reference, critic and reward model "
            f"share: {_merge_first(adapter)}"
        )


def check_settings(settings: Mapping[str, Any]) -> None:
    """The same of an adapter's settings in Python, and whether they are LoRA's at all."""
    if problem := adapter_problem(settings):
        raise UserError(f"the adapter {problem}")
    if setting := beside_lora(settings):
        raise UserError(
            f"the adapter has {setting}, which changes the base itself, that policy, reference, critic and reward "
            "model share: merge it into the base (merge_and_unload), or train without it"
        )


def check_task(adapter: str | Path, *others: str) -> None:
    """Raises `UserError` when the adapter in a folder was made for no language model, and for none of `others`."""
    task = read_adapter_config(adapter).get("task_type")
    if task not in (None, "CAUSAL_LM", *others):
        raise UserError(f"{adapter} is an adapter for {task}, not of a language model: give one that SFT made, say")


def needs_own_base(adapter: str | Path) -> bool:
    """Whether the base is another one under this adapter even when it is switched off, or takes no other beside it."""
    config = read_adapter_config(adapter)
    if stays_on(config) or config.get("trainable_token_indices") or config.get("target_parameters"):
        return True
    apart = (*(config.get("modules_to_save") or []), *HEADS)
    return any(_LORA not in name and not any(part in name for part in apart) for name in _names(adapter))


def read_settings(folder: str | Path, task: str, dropout: float | None = None) -> LoraConfig:
    """The settings of a saved adapter, for one that its weights are then put into.

    Args:
        task: of the new adapter. dropout: of it; None: as saved.

    Raises:
        UserError: settings that PEFT refuses.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{Path(folder, ADAPTER_CONFIG)}: {' '.join(str(error).split())[:300]}") from None
    config.task_type, config.modules_to_save, config.inference_mode = TaskType(task), None, False
    config.auto_mapping = None  # of the class that it was made on; it now stands on another
    config.init_lora_weights = True  # the weights are known; some ways to draw them look at the base or at data
    if dropout is not None:
        config.lora_dropout = dropout
    return config


def name_base(config: PeftConfig, model: nn.Module) -> None:
    """What is saved of an adapter names the base that it stands on, which may be another copy than its file named."""
    base = getattr(model, "name_or_path", None)
    if base and config.base_model_name_or_path != base:
        config.base_model_name_or_path, config.revision = base, None


def read_head(folder: str | Path) -> dict[str, Tensor]:
    """The score head that lies with an adapter, by its own parameters' names; empty where there is none."""
    weights = read_weights(Path(folder, ADAPTER_WEIGHTS))
    return {key.removeprefix(HEAD): value for key, value in weights.items() if key.startswith(HEAD)}


def add_adapter(model: PeftModel, folder: str | Path, name: str) -> None:
    """Puts the adapter in `folder` on `model` under `name`, beside those that are there, without a score head that
    lies with it. It is not active yet.

    Raises:
        UserError: it cannot share a base, or is of another model.
    """
    check_shares_base(folder)
    weights = read_weights(Path(folder, ADAPTER_WEIGHTS))
    weights = of_lora({k: x for k, x in weights.items() if not k.startswith(HEAD)}, model.get_base_model(), folder)
    config = read_settings(folder, "TOKEN_CLS")
    name_base(config, model.get_base_model())
    for other in model.peft_config.values():
        mine, theirs = (sorted(each.target_parameters or ()) for each in (config, other))
        if mine != theirs:
            raise UserError(
                f"{folder} has target_parameters: {', '.join(mine) or None}, another adapter on the same base "
                f"{', '.join(theirs) or None}, which PEFT cannot have side by side: {_merge_first(folder)}"
            )
    output = output_layer(model.get_base_model())
    if output and not any(_module(key) == output for key in weights):
        exclude(config, output)  # as it was for a reward model, which has none
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no modules were excluded.*")
            model.add_adapter(name, config)
    except (TypeError, ValueError, KeyError) as error:
        raise does_not_fit(folder, model, error) from None
    if odd := difference(model, weights, name):
        model.delete_adapter(name)
        raise UserError(f"The adapter in {folder} does not fit the policy's base (first difference: {odd}).")
    set_peft_model_state_dict(model, weights, adapter_name=name)


def difference(model: PeftModel, weights: dict[str, Tensor], name: str = "default") -> str | None:
    """The first LoRA weight in which `weights` and the adapter `name` of `model` differ in name or shape."""
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    own = {key: x.shape for key, x in own.items() if _LORA in key}
    there = {key: x.shape for key, x in weights.items()}
    return min((key for key in {*own, *there} if own.get(key) != there.get(key)), default=None)


def check_output_layer(model: PeftModel, adapter: str | Path) -> None:
    """Raises `UserError` when the adapter on `model` is also one on its output layer, which TRL does not train."""
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            f"{adapter} adapts {output_layer(model.get_base_model())} too, which TRL does not train, since it takes "
            f"log-probabilities from that layer's own weights: {_merge_first(adapter)}"
        )


def check_brought(model: nn.Module, folder: str | Path) -> None:
    """Raises `UserError` when the file of an adapter brings weights of the base that are not those of `model`, and
    that PEFT would put into it."""
    names = [name for name in _names(folder) if _LORA not in name]
    if names:
        with safe_open(Path(folder, ADAPTER_WEIGHTS), framework="pt") as file:
            of_lora({name: file.get_tensor(name) for name in names}, model, folder)


def of_lora(weights: dict[str, Tensor], base: nn.Module, folder: str | Path) -> dict[str, Tensor]:
    """The LoRA weights alone. What PEFT saves beside them (embeddings) must be what the base has already."""
    aside = {key: value for key, value in weights.items() if _LORA not in key}
    own = dict(base.named_parameters(remove_duplicate=False)) if aside else {}
    own = {name.replace(".base_layer.", "."): parameter for name, parameter in own.items()}
    for key, value in aside.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        if name not in own and name.count(".") == 1:
            continue  # a language model's output layer, which a reward model has not, or the other way round
        if not _is_same(own.get(name), value):
            raise UserError(
                f"{folder} brings {name} along (PEFT's save_embedding_layers), other than it is in the base, which "
                f"policy, reference, critic and reward model share: {_merge_first(folder)}"
            )
    return {key: value for key, value in weights.items() if _LORA in key}


def _is_same(own: Tensor | None, saved: Tensor) -> bool:
    if own is None or own.numel() == 0:  # ZeRO-3 leaves nothing of a weight on a process
        return own is not None
    return own.shape == saved.shape and torch.equal(own.detach().cpu(), saved.to(own.dtype))


def leave_output(config: LoraConfig, weights: dict[str, Tensor], model: nn.Module) -> str | None:
    """Takes the output layer of a language model, which `model` has not, out of settings and weights; gives its name,
    or None where the adapter has no part in it."""
    left = {module for module in map(_module, weights) if "." not in module and not hasattr(model, module)}
    for module in left:
        exclude(config, module)
        for key in [key for key in weights if _module(key) == module]:
            del weights[key]
    return ", ".join(sorted(left)) or None


def output_layer(model: nn.Module) -> str | None:
    """The name of a language model's output layer."""
    layer = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is layer), None)


def exclude(config: LoraConfig, module: str) -> None:
    """No LoRA on `module`, whatever the settings say."""
    before = config.exclude_modules
    config.exclude_modules = (
        f"(?:{before})|{re.escape(module)}" if isinstance(before, str) else {*(before or ()), module}
    )


def _module(key: str) -> str:
    """The module of the base that a LoRA weight of an adapter's file belongs to."""
    return key.removeprefix(PREFIX).partition(_LORA)[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors, or a `UserError` that names it."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({str(error)[:200]}): save it again") from None


def does_not_fit(adapter: str | Path, model: nn.Module, error: Exception) -> Exception:
    """What to raise when `adapter` could not be put on `model`."""
    if "out of memory" in str(error):
        return error
    last = shortened((str(error).strip().splitlines() or [type(error).__name__])[-1], 300)
    return UserError(f"adapter {adapter} does not fit its base {model.name_or_path}, or is damaged: {last}")


def _merge_first(adapter: str | Path) -> str:
    return f"merge it first ({command('merge')} --run {adapter} --output FOLDER) and give FOLDER as the base"


def _names(folder: str | Path) -> list[str]:
    """Of the weights in an adapter's file."""
    try:
        with safe_open(Path(folder, ADAPTER_WEIGHTS), framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        path = Path(folder, ADAPTER_WEIGHTS)
        raise UserError(f"{path} is not a whole safetensors file ({str(error)[:200]}): save it again") from None
