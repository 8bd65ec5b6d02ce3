"""Folders of weights: safetensors only, whole, and which weights they are."""

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.errors import UserError
from pipeline.safety import shapes
from pipeline.safety.reading import read_json
from rewards.foreign import ADAPTER_WEIGHTS as ADAPTER_WEIGHTS
from rewards.foreign import PICKLES, adapter_problem

ADAPTER_CONFIG = "adapter_config.json"


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; a name too long for the file system is none."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def check_safetensors(folder: Path, what: str) -> None:
    """Raises `UserError` when the weights in `folder` are pickles, missing, or cut off; or when its adapter is none to
    load."""
    if (folder / ADAPTER_CONFIG).is_file():
        if problem := adapter_problem(read_adapter_config(folder)):
            raise UserError(f"{folder / ADAPTER_CONFIG} {problem}")
        if (folder / ADAPTER_WEIGHTS).is_file():
            check_whole(folder / ADAPTER_WEIGHTS)
            return
    elif files := sorted(folder.glob("*.safetensors")):
        for file in files:
            check_whole(file)
        return
    pickles = sorted(
        file.name for file in folder.iterdir() if file.suffix in PICKLES and "training_args" not in file.name
    )
    if pickles:
        raise UserError(
            f"{folder} has its {what} weights as a pickle ({pickles[0]}), which can run code when it is read: "
            "save it again as safetensors (model.save_pretrained does) and give that folder"
        )
    raise UserError(f"{folder} has no {what} weights: there is no .safetensors file of them in it")


def check_whole(file: Path) -> None:
    """Raises `UserError` when a safetensors file is shorter than its header says, or none at all."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is truncated or damaged ({str(error)[:200]}): copy, download or make it again"
        ) from None


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The adapter_config.json in `folder`, with the keys that are read of it checked; or a `UserError`."""
    return read_json(Path(folder) / ADAPTER_CONFIG, shapes.ADAPTER_CONFIG)


def fingerprint(folder: str) -> str | None:
    """A short hash of the weights in a local model folder; None for a Hub name.

    Taken from the sizes and the first and last MiB of each safetensors file, which training changes.
    """
    files = sorted(Path(folder).glob("*.safetensors")) if is_folder(folder) else []
    if not files:
        return None
    digest, chunk = hashlib.sha256(), 1 << 20
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(chunk))
            file.seek(max(0, size - chunk))
            digest.update(file.read(chunk))
    return digest.hexdigest()[:16]
