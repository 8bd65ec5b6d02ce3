"""Sweeps over a stage that is a short script (toy_stage.py)."""

import json
from pathlib import Path

from pipeline.sweep import SweepSettings

ROOT = Path(__file__).resolve().parents[2]
TOY = str(ROOT / "tests/support/toy_stage.py")
RATES = {"learning_rate": {"choice": ["1e-4", 1e-3, 1e-2]}}  # in the toy: gold 0.75, 1, 0.75 at a KL of 0.1, 1, 10


def asked(tmp_path, **changes) -> SweepSettings:
    settings = {"stage": "ppo", "stage_config": "recipes/tiny/ppo.yaml", "output_dir": str(tmp_path / "sweep")}
    settings |= {"measure": "gold", "space": RATES, "overrides": {"eval_every": 1}, "sampler": "grid"}
    return SweepSettings(**settings | changes)


def random(tmp_path, **changes) -> SweepSettings:
    """Draws from the whole range of the toy's gold, 0 to 1."""
    settings = {"space": {"learning_rate": {"log": [1e-7, 1e-3]}}, "sampler": "random", "trials": 4, "seed": 1}
    return asked(tmp_path, **settings | changes)


def rows(settings: SweepSettings) -> list[list[str]]:
    lines = Path(settings.output_dir, "table.md").read_text("utf-8").split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if "|--" not in line]


def write(folder: Path, **files) -> Path:
    """Files of a run: a list becomes JSON lines."""
    for name, lines in files.items():
        ending = "json" if isinstance(lines, dict) else "jsonl"
        text = "\n".join(map(json.dumps, [lines] if isinstance(lines, dict) else lines))
        (folder / f"{name}.{ending}").write_text(text + "\n")
    return folder
