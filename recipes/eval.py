"""Evaluation: `python recipes/eval.py --config recipes/tiny/eval.yaml [--setting value ...]`.

One greedy answer a line, for a file of prompts or of meaning representations:
`python recipes/eval.py --candidates runs/e2e/ppo --dataset test.csv --outputs ppo.txt`
"""

from pipeline import cli
from pipeline.eval import stage


def main() -> None:
    stage.run(*cli.parse(stage.EvalArguments))


if __name__ == "__main__":
    cli.launch(main)
