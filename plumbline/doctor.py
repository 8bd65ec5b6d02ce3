"""`plumbline doctor [RECIPE]`: what machine this is, what is missing on it, how long a recipe will take."""

import contextlib
import io
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch

from pipeline.config.machine import leave_busy_cores
from pipeline.errors import UserError
from pipeline.safety.commands import Parser
from pipeline.safety.console import say
from pipeline.watching.terminal import quiet
from plumbline import duration, machine, probe
from plumbline.launching import recipes
from plumbline.new_recipe import yamls

WIDTH, LEFT, TIMES = 100, 16, 24  # columns
MAIN = ("base", "sft", "reward", "ppo", "eval")  # of a folder these are added up


def main(arguments: list[str]) -> int:
    """The command."""
    parser = Parser("plumbline doctor", description="What machine this is, what is missing, how long a recipe takes.")
    parser.add_argument("recipe", nargs="?", help="a folder of YAMLs, or one YAML (by default the recipe tiny)")
    parser.add_argument("--no-probe", action="store_true", help="measure nothing, and say nothing of time")
    args = parser.parse_args(arguments)
    files = files_of(args.recipe)
    quiet()
    leave_busy_cores()
    show(machine.about())
    show(machine.packages())
    if not args.no_probe:
        say()
        for line in times(files, args.recipe or "tiny"):
            say(wrapped(line, TIMES if line.startswith(" ") else 2))
    return 0


def files_of(recipe: str | None) -> list[Path]:
    """The YAMLs of a folder, or the one that was named.

    Raises:
        UserError: there are none.
    """
    path = recipes() / "tiny" if recipe is None else Path(recipe)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: there is no such recipe; give a folder of YAMLs (plumbline init writes one)")
    found = [file for file in yamls(path) if file.stem in MAIN]
    if not found:
        raise UserError(f"{path} has none of {', '.join(f'{stage}.yaml' for stage in MAIN)}: it is no recipe")
    return found


def show(lines: Iterable[tuple[str, str]]) -> None:
    """Two columns, the second wrapped."""
    for what, value in lines:
        say(wrapped(f"{what:<{LEFT}}{value}", LEFT))


def wrapped(line: str, indent: int) -> str:
    """A line as wide as the terminal, and no wider than WIDTH; what does not fit stands below, indented."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    return textwrap.fill(line, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)


def times(files: list[Path], name: str) -> Iterator[str]:
    """Lines about the time of each stage."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.get_num_threads()
    threads = f" on {count} thread{'' if count == 1 else 's'}" if device == "cpu" else ""
    busy = psutil.cpu_percent(0.2) / 100 * (psutil.cpu_count() or 1)
    rate = probe.flops(torch.float32, device)
    yield f"Products of matrices, measured now: {rate / 1e9:,.0f} GFLOP/s in float32{threads}."
    yield f"How long {name} takes here, roughly:"
    total, unknown, guessed = 0.0, [], []
    for path in files:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # bars of the worlds that make a few rows
                work = duration.work_of(path)
        except UserError as error:
            yield f"  {path.stem:<12}{'?':>8}  {error}"
            unknown.append(path.stem)
            continue
        if work is None:
            yield f"  {path.stem:<12}{'?':>8}  not reckoned"
            unknown.append(path.stem)
            continue
        pace = probe.pace(work.config, work.dtype, device, work.rank, work.batch, whole=work.learned_all > 0)
        seconds = work.seconds(pace)
        total += seconds
        dtype = str(work.dtype).removeprefix("torch.")
        said = f"batches of {work.batch.rows} rows of {work.batch.length} tokens in {dtype}"
        yield f"  {path.stem:<12}{in_words(seconds):>8}  {said}"
        guessed += [guess for guess in work.guessed if guess not in guessed]
    if len(unknown) == len(files):
        return  # each has said why
    if len(files) > 1:
        yield f"  {'in all':<12}{in_words(total):>8}" + (f"  without {', '.join(unknown)}" if unknown else "")
    yield "This is rough: expect half of it to twice as much, and more beside other programs."
    if device == "cpu" and busy >= 0.5:
        yield f"Other programs kept {busy:.1f} cores busy while it was measured: without them it takes less."
    if guessed:
        yield f"Guessed: {'; '.join(guessed)}."


def in_words(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for size, unit in ((86_400, "days"), (3_600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
