"""From the figures of single runs to a comparison, and its table."""

from statistics import median
from typing import NamedTuple

from rich.table import Table

from tests.tools.bench import models
from tests.tools.bench.environment import RIVALS

PHASES = ("generation", "forward", "training", "gc", "other")


class Case(NamedTuple):
    size: str
    form: str
    dtype: str
    without_gc: bool = False  # TRL's garbage collections taken out of its time
    faster: float | None = None  # goal: episodes per second, times TRL's
    memory: float | None = None  # goal: peak memory, as a part of TRL's
    other: float | None = None  # goal: part of an update that is no pass, no step and no decoding
    sft: float | None = None  # goal: peak memory, as a part of our SFT stage's
    critic_layers: int = 1  # upper layers on which our critic is trained


CASES = {
    "M-fixed-bf16": Case("M", "fixed", "bfloat16", faster=1.8, memory=0.40, other=0.05, sft=1.25),
    "M-fixed-fp32": Case("M", "fixed", "float32", faster=1.3, memory=0.40, other=0.05, sft=1.25),
    "M-natural-bf16": Case("M", "natural", "bfloat16", faster=2.5, other=0.05),
    "M-fixed-bf16-whole-critic": Case("M", "fixed", "bfloat16", critic_layers=8),
    "M-fixed-fp32-whole-critic": Case("M", "fixed", "float32", critic_layers=8),
    "R-natural-fp32": Case("R", "natural", "float32", faster=2.5, memory=0.40, critic_layers=2),
    "R-natural-fp32-whole-critic": Case("R", "natural", "float32", faster=2.0, memory=0.40, critic_layers=30),
    "R-natural-bf16": Case("R", "natural", "bfloat16", critic_layers=2),
    "S-fixed-fp32": Case("S", "fixed", "float32", without_gc=True, faster=1.5),
    "S-natural-fp32": Case("S", "natural", "float32", without_gc=True, faster=1.5),
}


def side(runs: list[dict], without_gc: bool = False) -> dict:
    """Medians over all timed updates of one side's runs."""
    args = runs[0]["args"]
    splits = [split for run in runs for split in run["split"]]
    updates = [seconds for run in runs for seconds in run["seconds"]]
    tokens = [count for run in runs for count in run["tokens"]]
    if without_gc:
        updates = [seconds - split.get("gc", 0.0) for seconds, split in zip(updates, splits, strict=True)]
        splits = [{name: part for name, part in split.items() if name != "gc"} for split in splits]
    seconds = median(updates)
    return {
        "seconds": seconds,
        "seconds_least": min(updates),
        "seconds_most": max(updates),
        "updates": len(updates),
        "episodes_per_second": args["batch"] * args["accumulate"] / seconds,
        "tokens_per_second": sum(tokens) / sum(updates),
        "tokens_per_update": sum(tokens) / len(tokens),
        "split": {name: median(split.get(name, 0.0) for split in splits) for name in PHASES if name in splits[0]},
        "peak_mib": median(run["peak_mib"] for run in runs),
        "parameters": runs[0]["parameters"],
    }


def compare(case: Case, runs: dict[str, list[dict]], floor_seconds: float, sft_peak: float | None = None) -> dict:
    """Both sides of a case, our figures as multiples of the rival's, and the goals, which are set against TRL."""
    [rival] = set(runs) - {"plumbline"}
    theirs, ours = side(runs[rival], case.without_gc), side(runs["plumbline"], case.without_gc)
    ratio = {
        name: ours[name] / theirs[name]
        for name in ("episodes_per_second", "tokens_per_second", "peak_mib", "parameters")
    }
    found = {rival: theirs, "plumbline": ours, "ratio": ratio, "floor_seconds": floor_seconds, "rival": rival}
    found["without_gc"] = case.without_gc
    found["floor_share"] = {name: floor_seconds / found[name]["seconds"] for name in (rival, "plumbline")}
    found["other_share"] = {n: found[n]["split"].get("other", 0.0) / found[n]["seconds"] for n in (rival, "plumbline")}
    reached = {}
    if case.faster and rival == "trl":
        reached["episodes_per_second"] = {"goal": case.faster, "met": ratio["episodes_per_second"] >= case.faster}
    if case.memory and rival == "trl":
        reached["peak_mib"] = {"goal": case.memory, "met": ratio["peak_mib"] <= case.memory}
    # PEFT keeps an unused copy of a saved head
    least = models.one_base(models.SIZES[case.size])
    reached["parameters"] = {"goal": least, "met": ours["parameters"] <= least + models.SIZES[case.size].hidden}
    if case.other:
        reached["other"] = {"goal": case.other, "met": found["other_share"]["plumbline"] <= case.other}
    if sft_peak:
        found["sft_peak_mib"], found["of_sft_peak"] = sft_peak, ours["peak_mib"] / sft_peak
        if case.sft:
            reached["sft"] = {"goal": case.sft, "met": found["of_sft_peak"] <= case.sft}
    return found | {"goals": reached}


def table(cases: dict[str, dict]) -> Table:
    """The comparison as a person reads it; `cases` as `compare` gives them, by name."""
    [rival] = {RIVALS[found["rival"]].title for found in cases.values()}
    drawn = Table(title=f"PPO: {rival} and Plumbline side by side", title_justify="left")
    drawn.add_column("")
    for name in (rival, "Plumbline", "ratio", "goal"):
        drawn.add_column(name, justify="right")
    for name, found in cases.items():
        for row in rows(name, found):
            drawn.add_row(*row)
        drawn.add_section()
    return drawn


def rows(name: str, found: dict) -> list[tuple[str, ...]]:
    """Lines of one case: what, the rival's figure, ours, ratio, goal."""
    theirs, ours, ratio, goals = found[found["rival"]], found["plumbline"], found["ratio"], found["goals"]

    def goal(key: str, sign: str, unit: float = 1.0) -> str:
        if key not in goals:
            return ""
        return f"{sign} {goals[key]['goal'] / unit:.2f} {'met' if goals[key]['met'] else 'MISSED'}"

    def both(key: str, form: str) -> tuple[str, str]:
        return format(theirs[key], form), format(ours[key], form)

    def share(part: str) -> tuple[str, str, str, str]:
        def cell(one: dict) -> str:
            return (
                f"{one['split'][part]:.2f} ({one['split'][part] / one['seconds']:.0%})"
                if part in one["split"]
                else "-"
            )

        return f"  {part}, s", cell(theirs), cell(ours), ""

    title = f"[bold]{name}[/bold]" + (", gc left out" if found["without_gc"] else "")
    lines = [
        (title, "", "", "", ""),
        (
            "episodes per second",
            *both("episodes_per_second", ".2f"),
            f"{ratio['episodes_per_second']:.2f}",
            goal("episodes_per_second", ">="),
        ),
        ("tokens per second", *both("tokens_per_second", ".0f"), f"{ratio['tokens_per_second']:.2f}", ""),
        ("seconds an update", *both("seconds", ".2f"), f"{ours['seconds'] / theirs['seconds']:.2f}", ""),
    ]
    for part in PHASES:
        if part in theirs["split"] or part in ours["split"]:
            lines.append((*share(part), goal("other", "<=") if part == "other" else ""))
    lines += [
        (
            f"floor {found['floor_seconds']:.2f} s, share",
            *(f"{found['floor_share'][n]:.0%}" for n in (found["rival"], "plumbline")),
            "",
            "",
        ),
        ("peak memory, MiB", *both("peak_mib", ".0f"), f"{ratio['peak_mib']:.2f}", goal("peak_mib", "<=")),
        (
            "distinct parameters, M",
            *(f"{one['parameters'] / 1e6:.2f}" for one in (theirs, ours)),
            f"{ratio['parameters']:.2f}",
            goal("parameters", "<=", 1e6),
        ),
    ]
    if "of_sft_peak" in found:
        peak = f"{found['sft_peak_mib']:.0f} MiB"
        lines.append((f"peak, of our SFT stage's {peak}", "", "", f"{found['of_sft_peak']:.2f}", goal("sft", "<=")))
    return lines
