"""Choosing settings: `python recipes/sweep.py --config recipes/tiny/sweep.yaml [--jobs 2] [--setting value ...]`.

The same command goes on with a sweep that was stopped, and a second terminal may help with it. In the sweep's folder:
`table.md`, `what_mattered.svg`, `best.yaml`, and of each trial its YAML, its log and its run folder.
"""

import os
from pathlib import Path

from pipeline import cli
from pipeline.sweep import SweepSettings, run


def main() -> None:
    (settings,) = cli.parse(SweepSettings)
    run(settings, os.path.relpath(Path(__file__).with_name(f"{settings.stage}.py")))


if __name__ == "__main__":
    cli.launch(main)
