"""`make bench-gpu`: our PPO beside TRL 1.12's at real layer sizes on a CUDA card, in bfloat16.

Also how near decoding is to what the memory's bandwidth allows, and how near the peak memory is to the least that four
roles on one base can have. The same code runs at a toy size without a card:

    python -m tests.tools.bench.gpu --device cpu --sizes tiny

Writes `summary.json` and `table.txt` with date and card into the output folder.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.tools.bench import runs, tables
from tests.tools.bench.models import SIZES, Size, adapter_parameters, base_parameters

SIDES = ("trl", "plumbline")
KEPT = 4 + 4 + 8  # bytes of a trained parameter: itself, its gradient, AdamW's two moments, in float32


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "bench-gpu: no CUDA device is here; run it on a machine that has one, or try the same code with "
            "--device cpu --sizes tiny."
        )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    pythons = runs.pythons(args.sides, args.trl_env)
    summary = runs.about(device=card(args.device), rounds=args.rounds, updates=args.updates, cases={}, versions={})
    bandwidth = summary["bytes_per_second"] = copy_rate(args.device)
    for name in args.sizes:
        flags = ["--models", str((out / "models").absolute()), "--size", name, "--dtype", "bfloat16"]
        flags += ["--device", args.device, "--updates", str(args.updates), "--batch", str(args.batch)]
        found = runs.alternate(pythons, flags, args.rounds, name)
        summary["versions"] |= {side: ran[0]["versions"] for side, ran in found.items()}
        summary["cases"][name] = case = {side: tables.side(ran) for side, ran in found.items()}
        for side in case.values():
            side |= limits(SIZES[name], side, args.batch * 2, bandwidth)
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    with (out / "table.txt").open("w", encoding="utf-8") as file:
        for console in (Console(), Console(file=file, width=100)):
            console.print(table(summary))
    print(f"The figures lie in {out / 'summary.json'}.")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.bench.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--sizes", nargs="+", default=["0.5B", "1.5B"], choices=list(SIZES))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="(both)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side (2)")
    parser.add_argument("--updates", type=int, default=4, help="updates of a run; the first is not counted (4)")
    parser.add_argument("--batch", type=int, default=16, help="completions in a micro-batch, of which two make a step")
    parser.add_argument("--out", default="runs/bench-gpu", help="folder of models and figures (runs/bench-gpu)")
    parser.add_argument("--trl-env", help="TRL's environment (.venv-trl112)")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.updates < 2:
        parser.error("--rounds starts at 1 and --updates at 2: the first update of a run is not counted")
    return args


def card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else runs.cpu()


def copy_rate(device: str, times: int = 20) -> float:
    """Bytes that memory reads and writes in a second, measured with a plain copy."""
    source = torch.zeros(2**29 if device == "cuda" else 2**26, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(times):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def least_memory(size: Size) -> int:
    """Bytes of four roles on one base in bfloat16: two trained adapters and a frozen one; no heads, no activations."""
    return 2 * base_parameters(size) + (2 * KEPT + 4) * adapter_parameters(size)


def step_bytes(size: Size, rows: int) -> int:
    """Bytes that a decoding step has to read: every weight but the embeddings, and the cache half full."""
    weights = 2 * (base_parameters(size) - size.vocabulary * size.hidden)
    per_token = 2 * 2 * size.layers * size.hidden * size.kv_heads // size.heads
    return weights + rows * per_token * (size.prompt + size.completion // 2)


def limits(size: Size, side: dict, rows: int, bandwidth: float) -> dict:
    """Decoding against the memory's bandwidth, and peak memory against the least that one base can have."""
    rate = rows * size.completion / side["split"]["generation"]
    limit = rows * bandwidth / step_bytes(size, rows)
    return {
        "decoded_per_second": rate,
        "decoded_per_second_limit": limit,
        "of_decoding_limit": rate / limit,
        "least_mib": least_memory(size) / 2**20,
        "of_least_memory": side["peak_mib"] * 2**20 / least_memory(size),
    }


LINES = {
    "episodes per second": ("episodes_per_second", ".3f"),
    "seconds an update": ("seconds", ".2f"),
    "tokens decoded per second": ("decoded_per_second", ".0f"),
    "  of what bandwidth allows": ("of_decoding_limit", ".0%"),
    "peak memory, MiB": ("peak_mib", ".0f"),
    "  times the least with one base": ("of_least_memory", ".2f"),
    "distinct parameters": ("parameters", ",.0f"),
}


def table(summary: dict) -> Table:
    """The comparison as a person reads it."""
    title = f"PPO on {summary['device']}, bfloat16, {summary['date']}, commit {summary['commit']}"
    drawn = Table(title=title, title_justify="left")
    for name in ("", "TRL 1.12", "Plumbline", "ratio"):
        drawn.add_column(name, justify="right" if name else "left")
    for name, case in summary["cases"].items():
        drawn.add_row(f"[bold]{name}[/bold]", "", "", "")
        for line, (key, form) in LINES.items():
            cells = [format(case[side][key], form) if side in case else "not measured" for side in SIDES]
            ratio = f"{case['plumbline'][key] / case['trl'][key]:.2f}" if len(case) == 2 else ""
            drawn.add_row(line, *cells, ratio)
        drawn.add_section()
    return drawn


if __name__ == "__main__":
    sys.exit(main())
