"""The three stages of a recipe with several seeds, and what came out: `python recipes/seeds.py recipes/tiny 0 1 2`.

Base and data are shared; each seed has its own folders `runs/<recipe>/seed<n>/{sft,reward,ppo}`. What is there already
is kept, so that a stopped run goes on with the stages that are missing. `--last ppo_stuffing` runs that YAML in place
of ppo.yaml.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import yaml

from pipeline.errors import UserError
from pipeline.safety.commands import Parser

STAGES = ("sft", "reward", "ppo")  # of which a recipe has those that it has a YAML for


def command(recipe: Path, run: str, stage: str, seed: int) -> list[str]:
    """The stage's own launcher, with every path to an earlier stage's folder moved to the folder of the seed."""
    settings = yaml.safe_load((recipe / f"{stage}.yaml").read_text(encoding="utf-8"))
    moved = {f"{run}/{name}": f"{run}/seed{seed}/{name}" for name in (*STAGES, stage)}
    flags = [f"--seed={seed}"]
    for key, value in settings.items():
        text = json.dumps(value)
        for old, new in moved.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        if text != json.dumps(value):
            value = json.loads(text)
            flags += [f"--{key}", *(map(json.dumps, value) if isinstance(value, list) else [value])]
    script = os.path.relpath(Path(__file__).with_name(f"{stage.split('_')[0]}.py"))
    return [sys.executable, script, "--config", str(recipe / f"{stage}.yaml"), *flags]


def main(recipe: Path, seeds: list[int], last: str = "ppo") -> None:
    run, rows = f"runs/{recipe.name}", []
    there = [stage for stage in (*STAGES[:-1], last) if (recipe / f"{stage}.yaml").exists()]
    if there[-1:] != [last]:
        raise UserError(f"{recipe} has no {last}.yaml: give a folder of YAMLs; --last names the last of its stages")
    for seed in seeds:
        for stage in there:
            if not Path(run, f"seed{seed}", stage, "summary.json").exists():
                started = time.perf_counter()
                subprocess.run(command(recipe, run, stage, seed), check=True)
                print(f"seed {seed}, {stage}: {time.perf_counter() - started:.0f} s", flush=True)
        rows.append([json.loads(Path(run, f"seed{seed}", s, "summary.json").read_text("utf-8")) for s in there])
    for decoding in ("sampled", "greedy"):
        print(f"\n{decoding:<16}" + "".join(f"{f'seed {seed}':>18}" for seed in seeds) + f"{'mean':>18}")
        held = [ppo if decoding == "sampled" else ppo["greedy"] for *_, ppo in rows]
        for name in held[0]["before"]:
            pairs = [(h["before"][name], h["after"][name]) for h in held]
            pairs.append(tuple(mean(side) for side in zip(*pairs, strict=True)))
            print(f"{name:<16}" + "".join(f"{f'{b:.3f} -> {a:.3f}':>18}" for b, a in pairs))
    figures = {"KL, nats": [ppo["kl"] for *_, ppo in rows]}
    if "reward" in there:
        figures["reward accuracy"] = [stages[there.index("reward")]["accuracy"] for stages in rows]
    figures["seconds"] = [sum(stage["seconds"] for stage in stages) for stages in rows]
    for name, values in figures.items():
        print(f"{name:<16}" + "".join(f"{value:>18.2f}" for value in [*values, mean(values)]))


if __name__ == "__main__":
    parser = Parser("python recipes/seeds.py", description=__doc__.split(":")[0])
    parser.add_argument("recipe", type=Path, help="folder of YAMLs")
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--last", default="ppo", metavar="YAML", help="the last stage (default: ppo)")
    try:
        given = parser.parse_args()
        main(given.recipe, given.seeds, given.last)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    except subprocess.CalledProcessError as failed:  # it has said why
        parser.exit(failed.returncode if failed.returncode > 0 else 128 - failed.returncode)
