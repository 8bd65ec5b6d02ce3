"""PPO against TRL's GRPO and RLOO on the same base, rewards and number of completions, several seeds each:
`python recipes/compare.py recipes/tiny --seeds 0 1 2 --jobs 2 [--only ppo grpo] [--setting value ...]`.

The contestants stand in the folder's compare.yaml. Each run has a folder `runs/<recipe>/compare/<name>-seed<n>` and a
log beside it; what is complete is kept, and a stopped comparison goes on where it was. Then
`summary.json`, `table.md`, `curves.svg` and `curves.png` are written beside them. Other settings go to every run.
"""

import fcntl
import json
import os
import shlex
import time
from pathlib import Path

import yaml

from pipeline import cli
from pipeline.errors import UserError
from pipeline.runs.checkpoint_files import is_finished
from pipeline.runs.folder import SUMMARY, UNFINISHED, read_heldout
from pipeline.safety.commands import Parser
from pipeline.sweep.comparison import draw, markdown, summarize
from pipeline.sweep.launching import launch
from pipeline.worlds import lower_is_better

RESUME = "--resume"
KEYS = {"name", "script", "config", "total_episodes", "eval_every", "instant", "overrides"}


def command(recipe: Path, contestant: dict, seed: int, folder: Path, extra: list[str]) -> list[str]:
    """How the run is launched: script, YAML and flags, without the interpreter. `extra` flags win."""
    config = recipe / f"{contestant['config']}.yaml"
    flags = dict(contestant.get("overrides") or {})
    flags |= {key: contestant[key] for key in ("total_episodes", "eval_every") if key in contestant}
    if "instant" in contestant:
        flags["rewards"] = with_instant(yaml.safe_load(config.read_text("utf-8"))["rewards"], contestant["instant"])
    script = os.path.relpath(Path(__file__).with_name(f"{contestant['script']}.py"))
    words = [script, "--config", str(config)]
    for key, value in flags.items():
        words += [f"--{key}", *(map(json.dumps, value) if isinstance(value, list) else [str(value)])]
    return [*words, *extra, "--seed", str(seed), "--output_dir", str(folder)]


def with_instant(rewards: list, instant: dict) -> list[dict]:
    """The rewards, each paid as it is earned where `instant` (name -> true, words or tokens) says so, else at the
    end."""
    specs = [{"name": spec} if isinstance(spec, str) else dict(spec) for spec in rewards]
    if unknown := set(instant) - {spec["name"] for spec in specs}:
        raise UserError(f"compare.yaml: instant names {', '.join(sorted(unknown))}, which the recipe does not reward")
    return [
        {key: value for key, value in spec.items() if key != "instant"}
        | ({"instant": instant[spec["name"]]} if instant.get(spec["name"]) else {})
        for spec in specs
    ]


def read(recipe: Path) -> dict:
    """`compare.yaml`: `against`, `contestants`, and settings for all of them that a contestant does not set itself."""
    path = recipe / "compare.yaml"
    if not path.is_file():
        raise UserError(f"{path} does not exist: it lists the contestants, see recipes/tiny/compare.yaml")
    found = yaml.safe_load(path.read_text("utf-8"))
    shared = {key: value for key, value in found.items() if key not in ("against", "contestants")}
    found["contestants"] = [shared | contestant for contestant in found["contestants"]]
    for contestant in found["contestants"]:
        if wrong := set(contestant) - KEYS:
            raise UserError(f"{path}: no such key {', '.join(sorted(wrong))}; choose from {', '.join(sorted(KEYS))}")
        if missing := {"name", "script", "config"} - set(contestant):
            raise UserError(f"{path}: {contestant.get('name', 'a contestant')} has no {', '.join(sorted(missing))}")
    return found


def missing(wanted: dict[Path, list[str]]) -> dict[Path, list[str]]:
    """The runs that have not come to their end yet. One that was stopped halfway goes on where it was."""
    left = {}
    for folder, words in wanted.items():
        log = folder.with_suffix(".log")
        if not is_finished(folder, UNFINISHED):
            left[folder] = [*words, RESUME] if folder.exists() else words
        elif log.exists() and launched(log, words[0]) != shlex.join(words):
            raise UserError(f"{folder} was run with other settings (see {log}): rename {folder.parent} or remove it")
    return left


def launched(log: Path, script: str) -> str | None:
    """The command of the last run that stands in a log, whether the run began with it or went on."""
    lines = [line for line in log.read_text("utf-8").splitlines() if line.startswith(f"{script} ")]
    return lines[-1].removesuffix(f" {RESUME}") if lines else None


def run_all(runs: dict[Path, list[str]], jobs: int) -> None:
    """Runs the commands, `jobs` at once; stops all of them at the first that fails."""
    waiting, running = list(runs.items()), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                folder, words = waiting.pop(0)
                process = launch(words, folder.with_suffix(".log"), jobs)
                running[process] = (folder, time.perf_counter())
                print(f"{folder.name}: started, {len(waiting)} more to come", flush=True)
            for process in [process for process in running if process.poll() is not None]:
                folder, started = running.pop(process)
                if process.returncode:
                    raise UserError(f"{folder.name} failed; {folder.with_suffix('.log')} says why")
                print(f"{folder.name}: done in {time.perf_counter() - started:.0f} s", flush=True)
            time.sleep(0.2)
    finally:
        for process in running:
            process.terminate()
            process.wait()


def main() -> None:
    parser = Parser("python recipes/compare.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, with one thread each when 2 or more")
    parser.add_argument("--only", nargs="+", help="names of contestants")
    args, extra = parser.parse_known_args()
    plan = read(args.recipe)
    names = [contestant["name"] for contestant in plan["contestants"]]
    if unknown := set(args.only or ()) - set(names):
        raise UserError(f"--only names {', '.join(sorted(unknown))}; the contestants are {', '.join(names)}")
    chosen = [c for c in plan["contestants"] if c["name"] in (args.only or names)]

    out = Path("runs", args.recipe.resolve().name, "compare")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another comparison is running in {out}: wait for it") from None
        wanted = {}
        for seed in args.seeds:  # seed by seed: a stopped comparison has something of everyone
            for contestant in chosen:
                folder = out / f"{contestant['name']}-seed{seed}"
                wanted[folder] = command(args.recipe, contestant, seed, folder, extra)
        run_all(missing(wanted), args.jobs)
        rows = {
            c["name"]: {seed: read_heldout(out / f"{c['name']}-seed{seed}") for seed in args.seeds} for c in chosen
        }
        against = plan["against"] if plan["against"] in rows else chosen[0]["name"]
        clock = "cpu_seconds" if args.jobs > 1 else "seconds"  # runs side by side slow each other down
        summary = summarize(rows, against, clock)
        (out / SUMMARY).write_text(json.dumps({"seeds": args.seeds} | summary, indent=2) + "\n", encoding="utf-8")
        (out / "table.md").write_text(markdown(summary), encoding="utf-8")
        lower = lower_is_better(yaml.safe_load((args.recipe / "ppo.yaml").read_text("utf-8")).get("referee"))
        draw(rows, out / "curves.svg", clock, lower)
        draw(rows, out / "curves.png", clock, lower)
    print(f"\n{markdown(summary)}\nThe table and the curves lie in {out}: table.md, curves.svg, curves.png.")


if __name__ == "__main__":
    cli.launch(main)
