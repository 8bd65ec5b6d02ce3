"""`make bench`: our PPO beside a rival's, the same work on both sides, in alternating runs.

    python -m tests.tools.bench --cases M-fixed-bf16 S-fixed-fp32 --rounds 3      beside TRL 1.12's
    python -m tests.tools.bench --cases R-natural-fp32 --rival agilerl            beside AgileRL's

Writes `summary.json` into the output folder after every case, and prints the table.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from rich.console import Console

from rewards.processor import has_units
from tests.tools.bench import environment, runs, tables
from tests.tools.bench.tables import CASES, Case

BUSY = 0.10  # more than this share of all cores at work for others, and the figures are worth little


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("bench: peak memory is read from /proc, which only Linux has; run it there.")
    pythons = runs.pythons((args.rival, "plumbline"), args.rival_env)
    summary = runs.about(threads=args.threads, rounds=args.rounds, updates=args.updates, busiest=0.0, versions={})
    summary["cases"] = {}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in args.cases or usual_cases():
        summary["cases"][name] = measured(CASES[name], name, pythons, args, summary)
        # a run that is stopped keeps the cases that it has
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console = Console()
    console.print(tables.table(summary["cases"]))
    console.print(f"{summary['cpu']}, {args.threads} threads, {summary['date']}, commit {summary['commit']}")
    if summary["busiest"] > BUSY:
        console.print(f"[red]Other programs used up to {summary['busiest']:.0%} of the machine: measure again.[/red]")
    console.print(f"The figures lie in {out / 'summary.json'}.")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.bench", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=list(CASES),
        metavar="CASE",
        help=f"of {', '.join(CASES)}; those of 16 bits are left out where the processor has no units for them",
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--updates", type=int, default=3, help="updates of a run; the first is not counted (3)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="(2)")
    parser.add_argument("--out", default="runs/bench", help="folder of models and figures (runs/bench)")
    parser.add_argument("--rival", choices=environment.RIVALS, default="trl", help="(trl)")
    parser.add_argument("--rival-env", help="its environment (.venv-trl112, .venv-agilerl)")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.updates < 2:
        parser.error("--rounds starts at 1 and --updates at 2: the first update of a run is not counted")
    return args


def usual_cases() -> list[str]:
    """All cases but those of 16 bits that this processor computes many times slower than float32: hours, and a figure
    of nobody's use."""
    slow = [name for name, case in CASES.items() if not has_units(getattr(torch, case.dtype))]
    if slow:
        print(f"This processor has no units for 16 bits; only --cases runs {', '.join(slow)}", flush=True)
    return [name for name in CASES if name not in slow]


def measured(case: Case, name: str, pythons: dict[str, Path], args: argparse.Namespace, summary: dict) -> dict:
    """Runs both sides of a case in turn, then the floor and, where there is a goal for it, the SFT stage."""

    def look_around() -> None:
        now = runs.busy()
        if now > BUSY:
            print(f"{name}: other programs use {now:.0%} of the machine now; the figures suffer", flush=True)
        summary["busiest"] = max(summary["busiest"], now)

    models = str(Path(args.out, "models").absolute())
    flags = ["--models", models, "--size", case.size, "--form", case.form, "--dtype", case.dtype]
    flags += ["--threads", str(args.threads), "--updates", str(args.updates)]
    flags += ["--critic-layers", str(case.critic_layers)]
    found = runs.alternate(pythons, flags, args.rounds, name, look_around)
    summary["versions"] |= {side: ran[0]["versions"] for side, ran in found.items()}
    ours = pythons["plumbline"]
    floor = runs.run(ours, "floor", flags)
    sft = runs.run(ours, "plumbline_ppo", [*flags, "--stage", "sft"])["peak_mib"] if case.sft else None
    return tables.compare(case, found, floor["seconds"], sft) | {"floor": floor, "runs": found}


if __name__ == "__main__":
    sys.exit(main())
