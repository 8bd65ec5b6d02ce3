"""The files of this house."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python_files(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)


def tracked_files() -> list[Path]:
    """What git holds or would hold; without git (an unpacked archive), every file outside hidden folders and runs/."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return sorted(ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())
    skipped = {"runs", "build", "dist"}
    parts = ((p, p.relative_to(ROOT).parts) for p in ROOT.rglob("*") if p.is_file())
    return sorted(p for p, names in parts if names[0] not in skipped and not names[0].startswith(".venv"))
