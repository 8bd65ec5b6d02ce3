"""Completions as offline data: `python recipes/sample.py --config recipes/tiny/sample.yaml [--setting value ...]`."""

from pipeline import cli
from pipeline.eval import sampling


def main() -> None:
    sampling.run(*cli.parse(sampling.SampleArguments))


if __name__ == "__main__":
    cli.launch(main)
