"""The small base of the field notes with its SFT adapter, as `make base sft` makes them, but for fewer texts.

Kept outside the repository: $PLUMBLINE_NOTES, or `plumbline-notes` among the temporary files. It has base, data, sft.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FEWER = ("--pretraining_texts", "9600", "--sft_rows", "2000", "--prompt_rows", "1000")


def folder() -> Path:
    """Minutes on one core, the first time."""
    place = Path(os.environ.get("PLUMBLINE_NOTES") or Path(tempfile.gettempdir(), "plumbline-notes"))
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes it
        if not (place / "sft" / "adapter_model.safetensors").is_file():
            _run("base", "--output_dir", place, *FEWER)
            data = ("--dataset", place / "data" / "sft_train.jsonl", "--model_name_or_path", place / "base")
            _run("sft", *data, "--output_dir", place / "sft", "--use_cpu")
    return place


def _run(stage: str, *settings) -> None:
    recipe = ROOT / "recipes" / "tiny" / f"{stage}.yaml"
    asked = [sys.executable, ROOT / "recipes" / f"{stage}.py", "--config", recipe, *settings]
    subprocess.run([str(part) for part in asked], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
