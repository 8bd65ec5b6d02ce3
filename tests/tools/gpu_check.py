"""`make gpu-check`: the three stages at real sizes on a CUDA card, in one script of at most eight minutes.

SFT, reward model and ten PPO updates of SmolLM2-135M (from the package index, or random weights of its shape where it
cannot be had) and of a random model of Qwen2.5-0.5B's shape, in bfloat16. Each stage is the pipeline's own, in a
process of its own (gpu_stages.py), and one table says how long it took, how near the estimate of its memory was to
the peak, how fast it decoded, and how far from 1 the ratio of the first step was. Nothing is judged but that it runs.
The same code without a card, at a toy size:

    python -m tests.tools.gpu_check --cpu --small

Writes `summary.json`, `table.txt` and each stage's output into the output folder. Exit code: 0 all ran, 1 not all did,
2 there is no card.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from tests.tools.bench import environment, measure, runs
from tests.tools.gpu_stages import MODELS, STAGES

# Nobody is asked for anything but the package index, and that only once
QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "10"}
NO_CARD = (
    "gpu-check: no CUDA device is here; run it on a machine that has one, or try the same code at a toy size with "
    '--cpu --small (make gpu-check ARGS="--cpu --small").'
)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if not args.cpu and not torch.cuda.is_available():
        print(NO_CARD, file=sys.stderr)
        return 2
    out = Path(args.out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    ends = time.monotonic() + 60 * args.minutes
    device = runs.cpu() if args.cpu else torch.cuda.get_device_name()
    summary = runs.about(device=device, small=args.small, versions=measure.versions(), models={})
    for model in args.models:
        found = summary["models"][model] = {}
        for stage in STAGES:
            found[stage] = one(model, stage, args, out, ends - time.monotonic())
            (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            said = found[stage].get("failed") or f"{found[stage]['wall']:.0f} s"
            print(f"{model}, {stage}: {said}", flush=True)
            if "failed" in found[stage]:  # the next ones stand on it
                break
    with (out / "table.txt").open("w", encoding="utf-8") as file:
        for console in (Console(), Console(file=file, width=110)):
            console.print(table(summary))
            for line in notes(summary):
                console.print(line, highlight=False, markup=False)
    print(f"The figures lie in {out / 'summary.json'}, what each stage said beside it.")
    return int(any("failed" in stage for found in summary["models"].values() for stage in found.values()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="on the processor, in float32")
    parser.add_argument("--small", action="store_true", help="toy sizes, two updates")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="(all)")
    parser.add_argument("--minutes", type=float, default=8.0, help="a stage that is not done by then is ended (8)")
    parser.add_argument("--out", default="runs/gpu-check", help="folder of models and figures, made anew")
    return parser.parse_args(arguments)


def one(model: str, stage: str, args: argparse.Namespace, out: Path, left: float) -> dict:
    """The figures of one stage, run in a process of its own for at most `left` seconds; else `failed` says why."""
    command = [sys.executable, "-m", "tests.tools.gpu_stages", model, stage, str((out / model).absolute())]
    command += [flag for flag in ("--cpu", "--small") if getattr(args, flag[2:])]
    if left <= 0:
        return {"failed": "out of time"}
    log, started = out / f"{model}-{stage}.log", time.monotonic()
    with log.open("w", encoding="utf-8") as said:
        try:
            done = subprocess.run(
                command,
                cwd=environment.ROOT,
                env=os.environ | QUIET,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=left,
            )
        except subprocess.TimeoutExpired:
            return {"failed": "out of time"}
    if done.returncode:
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
        return {"failed": f"{''.join(last)[:200]} ({log})"}
    return measure.heard(log.read_text(encoding="utf-8")) | {"wall": time.monotonic() - started}


def decode_rate(updates: list[dict]) -> float:
    """Completion tokens a second of sampling: the median over updates, the first left out where there are more.

    Args: updates: rows of a run's metrics, with `tokens` (so far) and `time/generation` (seconds).
    """
    before = [0, *(row["tokens"] for row in updates)]
    rates = [(row["tokens"] - so_far) / row["time/generation"] for so_far, row in zip(before, updates, strict=False)]
    return median(rates[1:] or rates)


def table(summary: dict) -> Table:
    """The figures as a person reads them."""
    title = f"SFT, reward model and PPO on {summary['device']}, {summary['date']}, commit {summary['commit']}"
    drawn = Table(title=title, title_justify="left")
    names = ("", "seconds", "of it start", "estimated, MiB", "peak, MiB", "peak/est.", "decoded/s", "ratio/first")
    for name in names:
        drawn.add_column(name, justify="right" if name else "left")
    for model, found in summary["models"].items():
        drawn.add_row(f"[bold]{model}[/bold]")
        for name, stage in found.items():
            drawn.add_row(f"  {name}", *cells(stage))
        drawn.add_section()
    return drawn


def notes(summary: dict) -> list[str]:
    """What stands below the table: which models these were, and what failed."""
    stages = [(model, name, stage) for model, found in summary["models"].items() for name, stage in found.items()]
    lines = [f"{model}: {stage['of']}" for model, _, stage in stages if "of" in stage]
    return lines + [f"{model}, {name} failed: {stage['failed']}" for model, name, stage in stages if "failed" in stage]


def cells(stage: dict) -> list[str]:
    """One stage's line."""
    if "failed" in stage:
        return ["failed"]
    line = [f"{stage['wall']:.0f}", f"{stage['wall'] - stage['seconds']:.0f}"]
    estimate, peak = stage.get("estimate_mib"), stage.get("peak_mib")
    if estimate is None:
        return line
    line += [f"{estimate:,.0f}", f"{peak:,.0f}", f"{peak / estimate:.2f}"]
    if updates := stage.get("updates"):
        line += [f"{decode_rate(updates):,.0f}", f"{max(row['ratio/first'] for row in updates):.2g}"]
    return line


if __name__ == "__main__":
    sys.exit(main())
