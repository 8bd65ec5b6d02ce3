"""People as judges: `python recipes/judge.py --samples runs/tiny/ppo/samples.jsonl --output_dir runs/tiny/judged`."""

from pipeline import cli, judging


def main() -> None:
    judging.run(*cli.parse(judging.JudgeSettings))


if __name__ == "__main__":
    cli.launch(main)
