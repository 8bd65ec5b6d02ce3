"""Data files of the tests."""

import json
from pathlib import Path


def write_rows(path: Path, rows: list[dict]) -> str:
    """Writes a JSON-lines file, and the folders above it; its path as text, as a setting has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
