"""The files of this house."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python_files(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)
