"""A stage small enough to sweep over in a test: it reads its YAML, writes exams as PPO does, and says how it ended.

    python tests/support/toy_stage.py --config some.yaml [--resume]

The closer the learning rate is to 1e-3, the better: `gold` ends at 1 - |log10(rate) + 3| / 4. It and the KL, which
ends at 1000 times the rate, grow by a quarter in each of four exams. Files beside the sweep's folder steer what
happens after the first exam:

    wait-below    holds a number: a trial that would end with less gold waits for SIGTERM
    interrupt     the next trial presses Ctrl-C for its sweep, and waits for SIGTERM
    kill          the next trial kills its sweep, and waits for SIGTERM
    meet          a trial waits until another one has begun
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import yaml

EXAMS = 4
PATIENCE = 120  # seconds, after which a test that forgot its signal fails, and leaves nothing behind


def wait_for_sigterm() -> None:
    stopped = signal.sigtimedwait({signal.SIGTERM}, PATIENCE)
    sys.exit(128 + signal.SIGTERM if stopped else "error: nobody stopped it")


def after_the_first_exam(folder: Path, gold: float) -> None:
    flags = folder.parent.parent
    for name, signum in (("interrupt", signal.SIGINT), ("kill", signal.SIGKILL)):
        if (flags / name).exists():
            (flags / name).unlink()
            os.kill(os.getppid(), signum)
            wait_for_sigterm()
    if (flags / "wait-below").exists() and gold < float((flags / "wait-below").read_text()):
        wait_for_sigterm()
    until = time.monotonic() + PATIENCE
    while (flags / "meet").exists() and len(list(folder.parent.glob("*/heldout.jsonl"))) < 2:
        if time.monotonic() > until:
            sys.exit("error: no other trial came")
        time.sleep(0.02)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    settings = yaml.safe_load(Path(sys.argv[2]).read_text("utf-8"))
    folder, rate = Path(settings["output_dir"]), float(settings["learning_rate"])
    if folder.exists() and "--resume" not in sys.argv:
        sys.exit("error: output_dir already holds results")
    folder.mkdir(exist_ok=True)
    if rate > 0.5:
        print("a trace of several lines\nerror: the loss is not finite: lower learning_rate | at once\n")
        sys.exit(2)
    gold = 1 - abs(math.log10(rate) + 3) / 4
    rows = []
    for exam in range(EXAMS + 1):
        part = exam / EXAMS
        rows.append(
            {"step": exam, "episodes": part * settings["total_episodes"], "cpu_seconds": 60.0 * exam}
            | {"kl": 1000 * rate * part, "score": 0.0, "rewards": {"bleu": part}, "referee": {"gold": gold * part}}
        )
        (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if exam == 1:
            after_the_first_exam(folder, gold)
    said = {"words": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS")}
    (folder / "summary.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
