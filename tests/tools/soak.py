"""`make soak`: a thousand PPO updates in one process. Does anything grow that should not?

python tests/tools/soak.py [--updates 1000] [--output runs/soak] [--model runs/tiny/base]

It trains `--model`, or the toy of toy.py (nine tokens, two layers), with short completions, and all that the
stage does beside: exams on held-out prompts, checkpoints, watchers, metrics, the lines of the terminal. What is held,
at the end:

    memory      resident set at most 5% above that after 50 updates
    handles     no more file handles, threads or child processes than after 50 updates
    time        processor seconds an update: the median of the last 100 at most 10% above that of updates 101 to 200

It prints them, writes them to summary.json, and exits with 1 when a bound is broken.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import toy
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from pipeline.exam.exam import Exam, ExamCallback
from pipeline.runs.folder import RunFolder, write_aside
from pipeline.watching import terminal
from pipeline.watching.watch import WatchCallback

SETTLED = 50  # updates until caches and allocators are full
WINDOW = 100  # updates that a time is the median of
MEMORY, TIME = 0.05, 0.10  # what may come on top
PAGE = os.sysconf("SC_PAGE_SIZE")


class Gauge(TrainerCallback):
    """Looks at the process after each update."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []
        self.last = time.process_time()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        now = time.process_time()
        row = {"cpu_seconds": now - self.last, "handles": len(os.listdir("/proc/self/fd"))}
        row["threads"] = len(os.listdir("/proc/self/task"))
        row["children"] = sum(len(Path(task, "children").read_text().split()) for task in tasks())
        if len(self.rows) + 1 in (SETTLED, 2 * SETTLED) or not (len(self.rows) + 1) % WINDOW:
            gc.collect()  # what waits for the collector is no leak
        row["memory"] = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        self.rows.append(row)
        self.last = time.process_time()  # looking is not training


def tasks() -> list[Path]:
    return list(Path("/proc/self/task").iterdir())


def train(updates: int, folder: Path, model: str | None = None) -> list[dict[str, float]]:
    """So many updates of `model`, a folder (None: the toy); a row of figures for each."""
    run, gauge = RunFolder(folder), Gauge()
    trainer = toy.make_trainer(
        folder,
        toy.with_sft_adapter(model and AutoModelForCausalLM.from_pretrained(model)),
        tokenizer_=model and AutoTokenizer.from_pretrained(model),
        max_completion_length=8,
        total_episodes=8 * updates,
        learning_rate=1e-4,
        save_strategy="steps",
        save_steps=2 * max(1, updates // 10),  # two steps an update
        save_total_limit=2,
        callbacks=[run.metrics_callback()],
    )
    exam = Exam(trainer, trainer.reference_adapter, [{"prompt": p} for p in toy.PROMPTS], {"a": toy.letters}, {"a": 1})
    trainer.add_callback(ExamCallback(exam, folder, max(1, updates // 20)))
    trainer.add_callback(WatchCallback(folder))
    trainer.add_callback(gauge)
    with terminal.show_progress(trainer, "soak", sample_every=max(1, updates // 5)):
        trainer.train()
    return gauge.rows


def judge(rows: list[dict[str, float]]) -> dict:
    """The figures of a run and what is wrong with them.

    Args: rows: one an update, with memory (bytes), handles, threads, children and cpu_seconds.
    """
    settled, end, wrong = rows[min(SETTLED, len(rows)) - 1], rows[-1], []
    growth = end["memory"] / settled["memory"] - 1
    if growth > MEMORY:
        wrong.append(f"memory grew by {growth:.1%}, more than {MEMORY:.0%}")
    for name in ("handles", "threads", "children"):
        if end[name] > settled[name]:
            wrong.append(f"{end[name]} {name} at the end, {settled[name]} after {SETTLED} updates")
    found = {
        "updates": len(rows),
        "memory_mib": {"after_50": settled["memory"] / 2**20, "end": end["memory"] / 2**20, "growth": growth},
        "kib_an_update": slope(rows),
        **{name: {"after_50": settled[name], "end": end[name]} for name in ("handles", "threads", "children")},
    }
    found["cpu_seconds"] = sum(row["cpu_seconds"] for row in rows)
    if len(rows) >= 3 * WINDOW:
        early, late = (
            statistics.median(row["cpu_seconds"] for row in part)
            for part in (rows[WINDOW : 2 * WINDOW], rows[-WINDOW:])
        )
        found["cpu_seconds_an_update"] = {"101_to_200": early, "last_100": late, "growth": late / early - 1}
        if late > (1 + TIME) * early:
            wrong.append(f"an update took {late:.3f} s of the processor at the end, {early:.3f} s at first")
    return found | {"wrong": wrong}


def slope(rows: list[dict[str, float]]) -> float:
    """KiB that an update adds: the least-squares line through the memory after the first updates."""
    memory = [row["memory"] / 1024 for row in rows[min(SETTLED, len(rows)) - 1 :]]
    return statistics.linear_regression(range(len(memory)), memory).slope if len(memory) > 1 else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("runs/soak"))
    parser.add_argument("--model")
    args = parser.parse_args()
    terminal.quiet()
    if (args.output / "summary.json").exists():  # of an earlier soak, and nothing else is taken away
        shutil.rmtree(args.output)
    args.output = RunFolder.create(args.output).path
    started = time.perf_counter()
    rows = train(args.updates, args.output, args.model)
    found = judge(rows) | {"minutes": (time.perf_counter() - started) / 60}
    write_aside(args.output / "summary.json", json.dumps(found, indent=2) + "\n")
    memory = found["memory_mib"]
    print(f"{found['updates']} updates in {found['minutes']:.1f} minutes")
    print(
        f"memory    {memory['after_50']:.0f} MiB after {SETTLED} updates, {memory['end']:.0f} MiB at the end "
        f"({memory['growth']:+.1%}; {found['kib_an_update']:.2f} KiB an update)"
    )
    for name in ("handles", "threads", "children"):
        print(f"{name:<9} {found[name]['after_50']} after {SETTLED} updates, {found[name]['end']} at the end")
    if clock := found.get("cpu_seconds_an_update"):
        print(
            f"time      {clock['101_to_200']:.3f} s of the processor an update (101 to 200), "
            f"{clock['last_100']:.3f} s (last {WINDOW}; {clock['growth']:+.1%})"
        )
    for problem in found["wrong"]:
        print(f"too much: {problem}", file=sys.stderr)
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
