"""Data and base model of a world: `python recipes/base.py --config recipes/tiny/base.yaml [--setting value ...]`."""

from pipeline import cli
from pipeline.worlds import BaseModelSettings, WorldSettings
from pipeline.worlds.gguf import GGUFSettings
from pipeline.worlds.prepare import prepare


def main() -> None:
    prepare(*cli.parse(WorldSettings, BaseModelSettings, GGUFSettings))


if __name__ == "__main__":
    cli.launch(main)
