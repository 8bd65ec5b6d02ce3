"""Makes `<output_dir>/data` and `<output_dir>/base`, or finds them made."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import UserError
from pipeline.safety.commands import following
from pipeline.safety.console import say

from . import load_world
from .base import BaseModelSettings, WorldSettings, write_data
from .gguf import GGUFSettings, read_base

STAMP = ".made_from.json"


def prepare(
    world_settings: WorldSettings, base_settings: BaseModelSettings, gguf_settings: GGUFSettings | None = None
) -> Path:
    """Make data and base model of a world; what was made before with the same settings is kept.

    Both are built in a folder aside and renamed when finished, so a half-written one is never taken for whole. A base
    that is read from GGUF comes before the data, of which the model may write a part (`answered_by` of a world).

    Returns:
        The output folder.

    Raises:
        UserError: `base` or `data` exists but was made otherwise, or the world cannot be made.
    """
    output = Path(world_settings.output_dir)
    world = load_world(world_settings.world)
    read = gguf_settings if gguf_settings is not None and gguf_settings.given else None
    if read is None and not hasattr(world, "pretraining_texts"):
        raise UserError(
            f"The world {world_settings.world} trains no base: name one, gguf_package: name==version or gguf: path."
        )
    stamps = _stamps(world_settings, base_settings, Path(world.__file__), read)
    kept = [name for name in ("data", "base") if _is_made(output / name, stamps[name])]
    if len(kept) == 2:
        say(f"{output}/data and {output}/base: made before with these settings, kept. {_next()}")
        return output
    data = world.make_data(world_settings)

    def build_data(folder: Path) -> str:
        if hasattr(world, "answered_by"):
            data.update(world.answered_by(output / "base", data, world_settings))
        write_data(data, folder)
        return ", ".join(f"{len(rows)} {name}" for name, rows in data.items())

    def build_base(folder: Path) -> str:
        if read is not None:
            return read_base(folder, read)
        from .base_model import make_base_model

        texts = world.pretraining_texts(world_settings, data)
        chat = getattr(world, "CHAT_FORMAT", None)
        made = make_base_model(folder, texts, base_settings, world_settings.seed, chat)
        return (
            f"{made['parameters'] / 1e6:.2f} M parameters, {made['documents']} documents, "
            f"{made['tokens'] / 1e6:.2f} M tokens, loss {made['loss']:.3f} nats/token, {made['seconds']:.0f} s"
        )

    builds = (("data", build_data), ("base", build_base))
    for name, build in builds if read is None else reversed(builds):
        if name in kept:
            say(f"{output / name}: kept")
        else:
            say(f"{output / name}: {_build(output / name, stamps[name], build)}")
    say(_next())
    return output


def _next() -> str:
    return f"Next: the SFT stage ({following('sft') or 'make sft'})."


def _stamps(
    world_settings: WorldSettings, base_settings: BaseModelSettings, world_file: Path, read: GGUFSettings | None
) -> dict[str, dict]:
    """What data and base were made from: settings, the bytes of the data file, the code."""
    settings = {k: v for k, v in asdict(world_settings).items() if k not in ("output_dir", "data_path")}
    data = {"settings": settings, "data_file": None}
    if world_settings.data_path is not None:
        try:
            data["data_file"] = _digest(Path(world_settings.data_path))
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise UserError(
                f"data_path {world_settings.data_path}: {reason}. Give the path of the data file."
            ) from None
    code = sorted(world_file.parent.glob("*.py")) if world_file.name == "__init__.py" else [world_file]
    code += [Path(__file__).parent / name for name in ("base_model.py", "chat_format.py")]
    data["code"] = _digest(*code)
    if read is not None:
        base = {"gguf": read.stamp(), "code": _digest(Path(__file__).parent / "gguf.py")}
        return {"data": {**data, "base": base["gguf"]}, "base": base}
    return {"data": data, "base": {**data, "base_settings": asdict(base_settings)}}


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_made(folder: Path, stamp: dict) -> bool:
    """Whether `folder` is finished and fits; only the code may have changed since. UserError when something else is
    there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        fits = {**found, "code": None} == {**stamp, "code": None}
    except (OSError, ValueError, TypeError):
        fits = False
    if not fits:
        raise UserError(
            f"{folder} exists and was made with other settings or data: remove or rename it "
            f"(adapters trained on the old base do not fit a new one), or choose another --output_dir."
        )
    if found.get("code") != stamp["code"]:
        say(f"{folder} was made by another version of the code; remove it to make it anew.")
    return True


def _build(folder: Path, stamp: dict, build: Callable[[Path], str]) -> str:
    """Fill a folder aside with `build`, stamp it, rename it to `folder`. Returns what `build` says of it."""
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written ({error.strerror}): choose another --output_dir."
        ) from None
    said = build(aside)
    (aside / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    os.replace(aside, folder)
    return said
