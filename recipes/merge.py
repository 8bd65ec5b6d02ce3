"""Merge: `python recipes/merge.py --run runs/tiny/ppo --output runs/tiny/merged`, adapter and base as one model."""

from pipeline import cli
from pipeline.stages.merge import MergeArguments, merge


def main() -> None:
    merge(*cli.parse(MergeArguments))


if __name__ == "__main__":
    cli.launch(main)
