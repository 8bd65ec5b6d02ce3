"""What lies in a model folder or stage folder: which base, which adapter, and whether the two belong together."""

import re
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ModelArguments
from pipeline.errors import UserError
from pipeline.runs.folder import SUMMARY
from pipeline.safety.console import say
from pipeline.safety.reading import read_json
from pipeline.safety.weights import ADAPTER_CONFIG, check_safetensors, fingerprint, is_folder, read_adapter_config
from rewards.ensemble import members_of

_LONGEST_HUB_NAME = 193  # owner and name of 96 characters each
_MOST_LAYERS = 10_000  # a config with more would be built for hours

# that leave the adapter of a language model
_STAGES = ("sft", "ppo", "a2c", "reinforce", "grpo", "rloo", "ilql", "dpo")


class Stage(NamedTuple):
    """A base model and the adapter on it (None: the base as it is)."""

    base: str
    adapter: str | None


def resolve_stage(path: str) -> Stage:
    """Base and adapter of a model folder, stage folder or Hub name.

    The base of an adapter may be a relative path: it is looked for from each folder above the adapter, then from the
    working directory, so that a project that was moved still works.

    Raises:
        UserError: no such folder, no model in it, or pickled weights only.
    """
    folder = Path(path)
    if is_folder(path):
        if (folder / ADAPTER_CONFIG).is_file():
            check_safetensors(folder, "adapter")
            base = read_adapter_config(folder).get("base_model_name_or_path")
            if not base:
                raise UserError(f"{folder / ADAPTER_CONFIG} names no base model (base_model_name_or_path)")
            return Stage(_find_base(base, folder), path)
        if not (folder / "config.json").is_file() and (members := members_of(path)):
            many = f"an ensemble of {len(members)} reward models"
            raise UserError(f"{path} is {many}: give one of them, as {members[0]}")
        if not (folder / "config.json").is_file():
            raise UserError(f"{path} holds no model: neither config.json nor {ADAPTER_CONFIG} is in it")
        layers = read_json(folder / "config.json").get("num_hidden_layers")
        check_safetensors(folder, "model")
        if isinstance(layers, int | float) and layers > _MOST_LAYERS:
            raise UserError(
                f"{folder / 'config.json'}: num_hidden_layers is no number of layers: make the model again"
            )
        return Stage(path, None)
    if len(path) < 256 and folder.is_file():
        raise UserError(f"{path} is a file; give the folder of the model")
    if not is_hub_name(path):
        raise UserError(
            f"{path[:200]}: there is no such model folder (an earlier stage makes it, or the path is misspelt)"
        )
    return Stage(path, None)


def resolve_model(args: ModelArguments) -> Stage:
    """The base and the adapter to start from, out of `model_name_or_path` and `adapter_path`.

    Raises:
        UserError: neither is given, or the adapter was trained on another base.
    """
    if not (args.model_name_or_path or args.adapter_path):
        raise UserError("model_name_or_path is not set: name a base model (a folder or a Hub name) or a stage folder")
    if not args.model_name_or_path or args.model_name_or_path == args.adapter_path:
        stage = resolve_stage(args.adapter_path)
        if stage.adapter is None:
            raise UserError(f"adapter_path {args.adapter_path} holds no LoRA adapter ({ADAPTER_CONFIG} is missing)")
        check_fingerprint(stage)
        return stage
    stage = resolve_stage(args.model_name_or_path)
    if args.adapter_path:
        if not Path(args.adapter_path, ADAPTER_CONFIG).is_file():
            raise UserError(f"adapter_path {args.adapter_path} holds no LoRA adapter ({ADAPTER_CONFIG} is missing)")
        check_safetensors(Path(args.adapter_path), "adapter")
        check_given_base(stage.base, args.adapter_path)
        stage = Stage(stage.base, args.adapter_path)
    if stage.adapter:
        check_fingerprint(stage)
    return stage


def name_of_start(adapter: str | None) -> str:
    """What tables and samples call the model that a run started from: `base`, or by the stage that left the adapter
    (`SFT`, `PPO`, …); `start` where nothing says which that was."""
    if adapter is None:
        return "base"
    path = Path(adapter, SUMMARY)
    found = read_json(path) if path.is_file() else {}
    made_by = found.get("stage") or found.get("algorithm") or Path(adapter).name
    return made_by.upper() if made_by in _STAGES else "start"


def check_same_base(base: str, adapter: str) -> None:
    """Raises `UserError` when `adapter` was trained on another base than `base`."""
    named = read_adapter_config(adapter).get("base_model_name_or_path") or ""
    if named == base:
        return
    try:
        found = _find_base(named, Path(adapter))
    except UserError:
        return  # its base is gone; shapes are compared when the weights are loaded
    same_folder = is_folder(found) and is_folder(base) and Path(found).resolve() == Path(base).resolve()
    same_weights = fingerprint(found) is not None and fingerprint(found) == fingerprint(base)
    if not (found == base or same_folder or same_weights):
        raise UserError(f"adapter {adapter} was trained on the base {named}, not on {base}: give {named} as the base")


def check_given_base(base: str, adapter: str) -> None:
    """Raises `UserError` when `adapter` was trained on another base than `base`, which somebody has given for it.

    An adapter from elsewhere may name a base by a Hub name that says little: a mirror (`unsloth/…`), a quantised copy
    (`…-bnb-4bit`), a model that lies here as a folder. There the base that was given is taken, and that is said.
    """
    named = read_adapter_config(adapter).get("base_model_name_or_path")
    if not named:
        return
    elsewhere = is_hub_name(named) and not is_folder(_find_base(named, Path(adapter)))
    if named != base and elsewhere and (is_folder(base) or _plain_name(named) == _plain_name(base)):
        say(f"note: the adapter in {adapter} names the base {named}; it is put on {base}, which was given for it")
        return
    check_same_base(base, adapter)


def _plain_name(hub_name: str) -> str:
    """Of a model, without its owner and without what is added to the name of a copy in 4 bits."""
    return re.sub(r"(-unsloth)?(-bnb)?-4bit$", "", hub_name.rpartition("/")[2].lower())


def is_hub_name(path: str) -> bool:
    """Whether `path` can be the name of a Hub repository, such as `Qwen/Qwen2.5-0.5B-Instruct` or `gpt2`."""
    if len(path) > _LONGEST_HUB_NAME:
        return False
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path)) and not path.startswith("runs/")


def _find_base(base: str, adapter: Path) -> str:
    if Path(base).is_absolute():
        if is_folder(base):
            return base
    else:
        for folder in adapter.resolve().parents:
            if (folder / base).is_dir():
                # The short form when both are the same, so that no absolute path gets into saved files.
                return base if is_folder(base) and Path(base).resolve() == folder / base else str(folder / base)
        if is_folder(base):
            return base
    if is_hub_name(base):
        return base
    raise UserError(
        f"the adapter in {adapter} belongs on the base {base}, which is not there: put it back, or give a copy of it "
        "as the base (model_name_or_path)"
    )


def check_fingerprint(stage: Stage) -> None:
    summary = Path(stage.adapter, SUMMARY)
    then = read_json(summary).get("base_fingerprint") if summary.is_file() else None
    now = fingerprint(stage.base)
    if then and now and then != now:
        raise UserError(
            f"adapter {stage.adapter} was trained on other weights than now lie in its base {stage.base}: "
            "train the adapter again, or put the old base back"
        )
