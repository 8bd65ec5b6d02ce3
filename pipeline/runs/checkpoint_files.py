"""Checkpoints on disk: written aside, sealed with checksums, renamed when complete; a damaged one is passed over.

`<run>/.partial/checkpoint-N` is one that is being written. When all its files are there, `manifest.json` gets their
sizes and SHA-256, everything is flushed to the disk, and the folder is renamed to `<run>/checkpoint-N`. A process that
is killed on the way leaves `.partial` behind, which nobody reads.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.runs.folder import CONFIG, HELDOUT, METRICS, RESUMED, SUMMARY, UNFINISHED

PARTIAL, MANIFEST = ".partial", "manifest.json"
APPENDED = (METRICS, HELDOUT)  # files of a run that grow line by line
ASIDE = "before-restart"  # folder for what a run had written that had no checkpoint to go on from
STAYS = (CONFIG, RESUMED, UNFINISHED)
# A file of these kinds that the manifest does not name was put there by somebody else, and could be loaded.
LOADABLE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def seal(aside: Path, final: Path, facts: dict[str, Any]) -> None:
    """Makes the folder `aside` the checkpoint `final`, whole or not at all.

    Args:
        facts: what else the manifest shall say: `step`, `inputs`, and what the caller likes.
    """
    run = final.parent
    for name in APPENDED:  # the manifest says how long they are: so much must survive as well
        if (run / name).is_file():
            _flush(run / name)
    manifest = facts | {"appended": {n: (run / n).stat().st_size for n in APPENDED if (run / n).is_file()}}
    manifest["files"] = {name: {"bytes": size, "sha256": sha} for name, size, sha in map(_facts, *_files(aside))}
    manifest["sha256"] = _digest_of(manifest)
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in aside.rglob("*"):
        _flush(path)
    _flush(aside)
    if final.exists():  # of the same step, damaged or of a longer run
        os.rename(final, aside.parent / f"old-{final.name}")
    os.rename(aside, final)
    _flush(run)
    clear(run)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when it is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("sha256") != _digest_of(manifest):
            return f"{MANIFEST} was changed"
        wanted = {name: (file["bytes"], file["sha256"]) for name, file in manifest["files"].items()}
        step = int(manifest["step"])
        if not manifest.get("whole", True):
            return "it holds the model alone (save_only_model)"
    except FileNotFoundError:
        return f"{MANIFEST} is missing" if folder.is_dir() else "there is no such folder"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    if folder.name.startswith("checkpoint-") and folder.name != f"checkpoint-{step}":
        return f"{MANIFEST} is that of step {step}"
    for name, (size, sha) in wanted.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes in place of {size}"
        if _sha256(path) != sha:
            return f"{name} has another checksum"
    strange = [n for n in _files(folder)[0] if n.endswith(LOADABLE) and n not in wanted]
    return f"{strange[0]} does not belong to it" if strange else None


def check(folder: Path) -> None:
    """Raises `UserError` unless `folder` is a checkpoint as it was written."""
    if problem := damage(folder):
        raise UserError(f"the checkpoint {folder} cannot be used ({problem}): give another, or --resume alone")


def newest(run: Path, log: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is whole; those that are not are named with `log` and passed over."""
    for path in sorted(of(run), key=step_of, reverse=True):
        problem = damage(path)
        if problem is None:
            return path
        log(f"{path} is damaged ({problem}) and passed over.")
    return None


def of(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, in any order."""
    return [path for path in run.glob("checkpoint-*") if path.is_dir() and re.fullmatch(r"\d+", path.name[11:])]


def step_of(folder: Path) -> int:
    """Optimizer steps that were done when the checkpoint was written."""
    return int(folder.name.removeprefix("checkpoint-"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that `damage` finds nothing wrong with."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def keep_newest(run: Path, step: int, limit: int | None, best: str | None) -> None:
    """Deletes all but the newest `limit` checkpoints up to `step`, and `best`; None or 0: keeps all.

    Later ones are of a run that went on from an earlier checkpoint, and will be replaced when it gets there.
    """
    if not limit or limit < 0:
        return
    old = sorted((path for path in of(run) if step_of(path) <= step), key=step_of)[:-limit]
    for path in old:
        if best is None or Path(best).name != path.name:
            (run / PARTIAL).mkdir(exist_ok=True)
            os.rename(path, run / PARTIAL / f"old-{path.name}")  # at once: no reader shall find half of one
    clear(run)


def clear(run: Path) -> None:
    """Removes what a process that was killed left half-written, and what is no longer wanted."""
    shutil.rmtree(run / PARTIAL, ignore_errors=True)


def set_aside(run: Path) -> Path | None:
    """Moves what a run has written into a new folder in its own, for a start from the beginning; returns that folder.

    What `--resume` reads stays. None: there is nothing to move.
    """
    names = sorted(path.name for path in run.iterdir())
    moved = [name for name in names if name not in STAYS and not name.startswith((".", ASIDE))]
    if not moved:
        return None
    numbered = (f"{ASIDE}-{number}" for number in itertools.count(2))
    aside = run / next(name for name in itertools.chain([ASIDE], numbered) if name not in names)
    aside.mkdir()
    for name in moved:
        os.rename(run / name, aside / name)
    return aside


def cut(run: Path, checkpoint: Path) -> None:
    """Cuts the files that grow line by line back to where `checkpoint` found them; the run makes the rest again.

    Of another run's checkpoint only its step is used: rows of later steps go.
    """
    manifest, own = read_manifest(checkpoint), checkpoint.resolve().parent == run.resolve()
    for name in APPENDED:
        path = run / name
        if not path.is_file():
            continue
        text = path.read_bytes()
        if own:
            kept = text[: manifest["appended"].get(name, 0)]
        else:
            kept = b"".join(line for line in text.splitlines(keepends=True) if _is_upto(line, manifest["step"]))
        if kept != text:
            aside = path.with_name(f".{name}.tmp")
            aside.write_bytes(kept)
            os.replace(aside, path)


def _is_upto(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def is_finished(run: Path, marker: str) -> bool:
    """Whether the run has come to its end: it has a summary, and its marker is gone."""
    return (run / SUMMARY).is_file() and not (run / marker).exists()


def _files(folder: Path) -> tuple[list[str], list[Path]]:
    """Names below `folder`, and the files; without the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return [path.relative_to(folder).as_posix() for path in paths], paths


def _facts(name: str, path: Path) -> tuple[str, int, str]:
    return name, path.stat().st_size, _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some file systems cannot flush a folder
    finally:
        os.close(descriptor)
