"""What of a run folder goes to the Hub, and in what shape: no pickles, no checkpoints, no paths of this machine."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCard

from pipeline.errors import UserError
from pipeline.hub.card import write_card
from pipeline.models.adapters import CRITIC
from pipeline.models.folders import is_hub_name
from pipeline.runs.folder import CONFIG, METRICS, SUMMARY
from pipeline.safety import shapes
from pipeline.safety.reading import checked, parse_json, parse_yaml, read_json, read_text, read_yaml
from pipeline.safety.weights import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_safetensors,
    check_whole,
    read_adapter_config,
)

CARD, REPORT = "README.md", "report.html"
# By name: a checkpoint has other safetensors as well, of rollouts.
WEIGHTS = (
    ADAPTER_WEIGHTS,
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)
MODEL = (ADAPTER_CONFIG, "config.json", "generation_config.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja"),
)
RECORD = (CONFIG, METRICS, SUMMARY)
# Of a run of ILQL, what it decodes with beside the policy.
VALUES, OF_VALUES = "values", (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "heads.safetensors", "ilql.json")
UNWRITTEN = "[More Information Needed]"  # stands in the empty form that PEFT leaves for a card
PICTURES = ("*.png", "*.svg")
# Files of the libraries say in these keys where the model lay; a token may look like a path and stays as it is.
PATH_KEYS = ("_name_or_path", "name_or_path", "base_model_name_or_path")
KINDS = {"CAUSAL_LM": "policy", "SEQ_CLS": "reward", "TOKEN_CLS": "critic"}
LOADERS = {"policy": "CausalLM", "reward": "SequenceClassification", "critic": "TokenClassification"}


class Parcel(NamedTuple):
    """What goes into one repository."""

    kind: str  # policy, reward or critic
    repo: str  # account/name
    folder: Path  # where the files come from, and where it is noted what was pushed
    files: dict[str, Path | bytes]  # name on the Hub -> local file, or the content where it differs from the file's
    warnings: list[str]

    def digests(self, name: str) -> list[str]:
        """The ids that the Hub may give the file: git's sha1, and the sha256 of a large one."""
        file, size = self.files[name], self.size(name)
        sha1, sha256 = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                sha1.update(chunk)
                sha256.update(chunk)
        return [sha1.hexdigest(), sha256.hexdigest()]

    def size(self, name: str) -> int:
        """In bytes."""
        file = self.files[name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size


def pack(run: Path, repo: str, what: list[str], base_model: str | None = None, report: bool = False) -> list[Parcel]:
    """One parcel for each of `what`; the one of the run's own kind goes to `repo`, the others to `<repo>-<kind>`.

    Args:
        what: of policy, reward, critic. Empty: the run's own kind and, of a policy, the reward model it learned from.
        base_model: the base's name on the Hub, written into the copies that are pushed.
        report: push report.html as well (it holds prompts and completions of the data).

    Raises:
        UserError: when there is nothing to push, something that was asked for is missing, or a file is not safe.
    """
    if not run.is_dir():
        raise UserError(f"run: there is no folder {run}; give the folder of a finished run, such as runs/tiny/ppo")
    own = kind_of(run)
    found = {own: [run]}
    if own == "policy":
        found["reward"] = _reward_folders(run)
        found["critic"] = [run / CRITIC] if (run / CRITIC / ADAPTER_CONFIG).is_file() else []
    parcels = []
    for kind in what or [own, *(["reward"] if found.get("reward") and own == "policy" else [])]:
        folders = found.get(kind, [])
        if len(folders) != 1:
            raise UserError(_not_one(kind, run, folders, found))
        name = repo if kind == own else f"{repo}-{kind}"
        parcels.append(parcel(kind, folders[0], name, base_model, report))
    return parcels


def _not_one(kind: str, run: Path, folders: list[Path], found: dict[str, list[Path]]) -> str:
    if folders:
        return (
            f"what: {run} was trained on {len(folders)} reward models ({', '.join(map(str, folders))}): "
            "push each with --run and a --repo of its own, and this run with --what policy"
        )
    return f"what: {run} has no {kind} to push; there is {', '.join(key for key, value in found.items() if value)}"


def kind_of(folder: Path) -> str:
    """policy, reward or critic, by the adapter's task or by the class of a full model."""
    if (folder / ADAPTER_CONFIG).is_file():
        task = read_adapter_config(folder).get("task_type")
        if task in KINDS:
            return KINDS[task]
        raise UserError(f"{folder / ADAPTER_CONFIG} has the task_type {task}; it must be one of {', '.join(KINDS)}")
    if (folder / "config.json").is_file():
        classes = read_json(folder / "config.json").get("architectures") or [""]
        return "reward" if str(classes[0]).endswith("ForSequenceClassification") else "policy"
    raise UserError(
        f"run: {folder} holds no result: neither {ADAPTER_CONFIG} nor config.json is in it; give a finished run"
    )


def parcel(
    kind: str, folder: Path, repo: str, base_model: str | None = None, report: bool = False, note: Path | None = None
) -> Parcel:
    """The files of `folder` that go to `repo`, checked and cleaned; `note`: the folder of the note, if another."""
    check_safetensors(folder, "adapter" if (folder / ADAPTER_CONFIG).is_file() else "model")
    if (folder / SUMMARY).is_file():
        write_card(folder, repo_id=repo)
    files: dict[str, Path | bytes] = {}
    wanted = (*WEIGHTS, *MODEL, *TOKENIZER, *RECORD, *PICTURES, CARD, *([REPORT] if report else []))
    for path in (path for pattern in wanted for path in sorted(folder.glob(pattern))):
        if path.suffix == ".safetensors":
            check_whole(path)
        files[path.name] = _without_local_paths(path) or path
    for path in (folder / VALUES / name for name in OF_VALUES if (folder / VALUES / name).is_file()):
        if path.suffix == ".safetensors":
            check_whole(path)
        files[f"{VALUES}/{path.name}"] = _without_local_paths(path) or path
    if kind == "critic":  # it reads the policy's tokens
        for name in TOKENIZER:
            if name not in files and (folder.parent / name).is_file():
                files[name] = _without_local_paths(folder.parent / name) or folder.parent / name
    warnings = []
    if ADAPTER_CONFIG in files:
        warnings = _point_at_base(files, folder, base_model)
    files[CARD] = _card(folder, kind, repo, base_model or _base_on_hub(folder)).encode()
    return Parcel(kind, repo, note or folder, dict(sorted(files.items())), warnings)


def _reward_folders(run: Path) -> list[Path]:
    """Folders of the reward models that this project trained and that the run learned from, by its config.yaml."""
    if not (run / CONFIG).is_file():
        return []
    rewards = checked(read_yaml(run / CONFIG), shapes.CONFIG, str(run / CONFIG)).get("rewards") or []
    folders = []
    for path in _paths_of_learned(rewards):
        folder = _find(path, run)
        if folder is not None and folder not in folders and kind_of(folder) == "reward":
            folders.append(folder)
    return folders


def _find(path: str, near: Path) -> Path | None:
    """The local folder that a run's settings mean by `path`: from here, or from a folder above the run."""
    return next((place / path for place in (Path(), *near.resolve().parents) if (place / path).is_dir()), None)


def _paths_of_learned(specs: list[dict[str, Any]]) -> Iterator[str]:
    for spec in specs:
        if spec.get("name") == "learned" and spec.get("path"):
            yield spec["path"]
        yield from _paths_of_learned(spec.get("rewards") or [])


# ------------------------------------------------------------ the base
def _base_of(folder: Path) -> str | None:
    found = read_adapter_config(folder) if (folder / ADAPTER_CONFIG).is_file() else {}
    return found.get("base_model_name_or_path")


def _base_on_hub(folder: Path) -> str | None:
    """The base's name on the Hub; None where the base is a local folder."""
    base = _base_of(folder)
    return base if base and is_hub_name(base) and _find(base, folder) is None else None


def _point_at_base(files: dict[str, Path | bytes], folder: Path, base_model: str | None) -> list[str]:
    """Writes `base_model` into the copy of adapter_config.json that is pushed; warns of a base others do not have."""
    if base_model is None:
        warning = f"its base is the folder {_base_of(folder)}, which others do not have: --base_model account/name"
        return [] if _base_on_hub(folder) else [f"{warning} names the one on the Hub"]
    if not is_hub_name(base_model):
        raise UserError(
            f"base_model: {base_model!r} is not valid: the name of a model on the Hub, such as account/name"
        )
    config = read_adapter_config(folder) | {"base_model_name_or_path": base_model, "revision": None}
    files[ADAPTER_CONFIG] = _json(config)
    return []


# ------------------------------------------------------------ paths of this machine
def _without_local_paths(path: Path) -> bytes | None:
    """The file's content without absolute paths, each cut to its last part; None when the file can go as it is."""
    if path.name in (CONFIG, SUMMARY):
        read, write, everywhere = parse_yaml, _yaml if path.name == CONFIG else _json, True
    elif path.suffix == ".json" and path.name in (*MODEL, "tokenizer_config.json"):
        read, write, everywhere = parse_json, _json, False
    else:
        return None
    found = read(read_text(path), str(path))
    cleaned = _cut_paths(found, everywhere)
    return None if cleaned == found else write(cleaned)


def _cut_paths(value: Any, everywhere: bool, key: str | None = None) -> Any:
    if isinstance(value, dict):
        return {name: _cut_paths(item, everywhere, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_cut_paths(item, everywhere, key) for item in value]
    if isinstance(value, str) and (everywhere or key in PATH_KEYS) and _is_machine_path(value):
        return PureWindowsPath(value).name  # knows both kinds of slashes
    return value


def _is_machine_path(text: str) -> bool:
    return bool(re.match(r"(/[^/\s]+/[^/]|~[\w-]*/|[A-Za-z]:[\\/])", text))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()


# ------------------------------------------------------------ the card
def _card(folder: Path, kind: str, repo: str, base: str | None) -> str:
    """The folder's card. The Hub refuses one whose base_model is not a name on the Hub, so a local base goes."""
    path = folder / CARD
    text = path.read_text("utf-8") if path.is_file() else UNWRITTEN
    card = ModelCard(_short_card(kind, repo) if UNWRITTEN in text else text, ignore_metadata_errors=True)
    if card.data.get("base_model") != base or any(_names_base(tag) for tag in card.data.tags or []):
        card.data.base_model = base
        card.data.tags = [tag for tag in card.data.tags or [] if not _names_base(tag)]
        card.data.tags += [f"base_model:adapter:{base}"] if base else []
    return str(card)


def _names_base(tag: str) -> bool:
    return tag.startswith("base_model:")


def _short_card(kind: str, repo: str) -> str:
    labels = "" if kind == "policy" else ", num_labels=1"
    return (
        f"---\nlibrary_name: peft\ntags:\n- lora\n- plumbline\n- {kind}\n---\n\n# {repo.split('/')[-1]}\n\n"
        f"The {kind} of a run of Plumbline: a LoRA adapter.\n\n```python\n"
        f"from peft import AutoPeftModelFor{LOADERS[kind]}\n\n"
        f'model = AutoPeftModelFor{LOADERS[kind]}.from_pretrained("{repo}"{labels})\n```\n'
    )
