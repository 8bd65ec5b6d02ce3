"""Several algorithms, several seeds, the same rewards: held-out score against generated tokens and against time.

Reads the `heldout.jsonl` of finished runs (see pipeline/exam/exam.py). Four definitions decide the table:

- The *curve* of a contestant is the mean over its seeds, exam by exam: seeds of one contestant are examined after the
  same number of updates. The band around it is the lowest and the highest seed.
- *Tokens to reach* a score: where the curve, drawn with straight lines between the exams, first meets it.
- *Time* is of training, exams left out: by the clock, or of the processor (`clock="cpu_seconds"`) where several runs
  with one thread each share a machine.
- The *best score at KL <= limit* is that of the best exam whose KL to the start is within the limit, seed by seed. It
  is picked on the prompts that it is measured on, so it is a little too good, for all contestants alike.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from pipeline.errors import UserError
from pipeline.report import number

KL_LIMIT = 10.0  # nats a completion
CLOCKS = {"seconds": "", "cpu_seconds": " (processor time)"}
MOST = 0.9  # of the way from the score before to the best score of the contestant that all are held against


class Point(NamedTuple):
    """One exam, mean over the seeds."""

    tokens: float  # generated in training
    seconds: float  # of training
    score: float
    low: float  # of the seeds
    high: float


def value_of(row: dict, name: str) -> float | None:
    """What an exam says: `score`, or a measure of the referee by its name."""
    return row["score"] if name == "score" else row["referee"].get(name)


def curve(runs: Sequence[Sequence[dict]], name: str = "score", clock: str = "seconds") -> list[Point]:
    """Exam by exam, the mean over `runs` (rows of heldout.jsonl, one list a seed); exams that all of them have."""
    by_step = [{row["step"]: row for row in rows if value_of(row, name) is not None} for rows in runs]
    points = []
    for step in sorted(set.intersection(*(set(rows) for rows in by_step))):
        rows = [rows[step] for rows in by_step]
        values = [value_of(row, name) for row in rows]
        tokens, seconds = (mean(row[key] for row in rows) for key in ("tokens", clock))
        points.append(Point(tokens, seconds, mean(values), min(values), max(values)))
    return points


def tokens_to_reach(points: Sequence[Point], score: float) -> float | None:
    """Where the curve first meets `score`: linear between two exams; None when it never does."""
    for i, point in enumerate(points):
        if point.score >= score:
            if i == 0:
                return point.tokens
            last = points[i - 1]
            return last.tokens + (score - last.score) / (point.score - last.score) * (point.tokens - last.tokens)
    return None


def best_within(rows: Sequence[dict], kl_limit: float = KL_LIMIT) -> float:
    """The best score of one run's exams whose KL is at most `kl_limit` nats. The start, at KL 0, always counts."""
    return max(row["score"] for row in rows if row["kl"] <= kl_limit)


def summarize(contestants: dict[str, dict[int, list[dict]]], against: str, clock: str = "seconds") -> dict:
    """The figures of the table.

    Args:
        contestants: name -> seed -> rows of heldout.jsonl.
        against: the contestant whose best score is the one to reach.
        clock: `seconds` or `cpu_seconds`.

    Raises:
        UserError: when a run has no exams, or `against` is not there.
    """
    if against not in contestants:
        raise UserError(f"against is {against!r}, which is no contestant; choose one of {', '.join(contestants)}")
    for name, runs in contestants.items():
        for seed, rows in runs.items():
            if len(rows) < 2:
                raise UserError(f"{name}, seed {seed} has no heldout.jsonl with a row before and a row after training")
    curves = {name: curve(list(runs.values())) for name, runs in contestants.items()}
    before, best = curves[against][0].score, max(point.score for point in curves[against])
    fixed = {"best": best, "most": before + MOST * (best - before)}
    found = {}
    for name, runs in contestants.items():
        last = {seed: rows[-1] for seed, rows in runs.items()}
        within = {seed: best_within(rows) for seed, rows in runs.items()}
        found[name] = {
            "before": mean(rows[0]["score"] for rows in runs.values()),
            "after": _over_seeds({seed: row["score"] for seed, row in last.items()}),
            "referee": {
                measure: _over_seeds({seed: row["referee"][measure] for seed, row in last.items()})
                for measure in next(iter(last.values()))["referee"]
            },
            "kl": _over_seeds({seed: row["kl"] for seed, row in last.items()}),
            "tokens_to_reach": {which: tokens_to_reach(curves[name], score) for which, score in fixed.items()},
            "best_within_kl": _over_seeds(within),
            "episodes": mean(row["episodes"] for row in last.values()),
            "tokens": mean(row["tokens"] for row in last.values()),
            "minutes": mean(row[clock] for row in last.values()) / 60,
        }
    return {
        "against": against,
        "fixed": fixed,
        "clock": clock,
        "kl_limit": KL_LIMIT,
        "most": MOST,
        "contestants": found,
    }


def markdown(summary: dict) -> str:
    """The table, one contestant a row, with what its columns mean."""
    fixed, against = summary["fixed"], summary["against"]
    measures = list(next(iter(summary["contestants"].values()))["referee"])
    head = ["contestant", "held-out score after (each seed)", *(f"{m} (each seed)" for m in measures)]
    head += [
        f"tokens to {number(fixed['most'], 3)}",
        f"tokens to {number(fixed['best'], 3)}",
        f"best score at KL ≤ {number(summary['kl_limit'])}",
        "KL after, nats",
        "tokens",
        "minutes",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, c in summary["contestants"].items():
        reach = [c["tokens_to_reach"][which] for which in ("most", "best")]
        cells = [name, _each(c["after"]), *(_each(c["referee"][m]) for m in measures)]
        cells += ["not reached" if tokens is None else f"{tokens:,.0f}" for tokens in reach]
        cells += [
            _each(c["best_within_kl"]),
            number(c["kl"]["mean"], 2),
            f"{c['tokens']:,.0f}",
            number(c["minutes"], 1),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    before = mean(c["before"] for c in summary["contestants"].values())
    lines += [
        "",
        "Score: the weighted sum of the rewards' means on held-out prompts, sampled; before training "
        f"{number(before, 3)}. The scores to reach are the best of {against} ({number(fixed['best'], 3)}, on its mean "
        f"curve) and {summary['most']:.0%} of the way there; straight lines between exams. Tokens are completion "
        f"tokens sampled in training; minutes are of training{CLOCKS[summary['clock']]}, without the exams.",
    ]
    return "\n".join(lines) + "\n"


def draw(
    contestants: dict[str, dict[int, list[dict]]], path: Path, clock: str = "seconds", lower: Collection[str] = ()
) -> None:
    """Score and the referee's measures (rows) against generated tokens and minutes of training (columns), as SVG or
    PNG by the ending of `path`. A line is the mean over the seeds, its band the lowest and the highest. `lower` names
    the measures that get better as they fall."""
    some = next(iter(next(iter(contestants.values())).values()))[0]
    names = ["score", *some["referee"]]
    with matplotlib.rc_context({"svg.hashsalt": "compare", "font.size": 9}):
        figure = Figure(figsize=(10, 3.4 * len(names)), layout="constrained")
        all_axes = figure.subplots(len(names), 2, squeeze=False, sharey="row")
        for name, (by_tokens, by_time) in zip(names, all_axes, strict=True):
            for label, runs in contestants.items():
                points = curve(list(runs.values()), name, clock)
                for axes, xs in (
                    (by_tokens, [point.tokens for point in points]),
                    (by_time, [point.seconds / 60 for point in points]),
                ):
                    (line,) = axes.plot(xs, [point.score for point in points], label=label, linewidth=1.6, marker=".")
                    low, high = [point.low for point in points], [point.high for point in points]
                    axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            direction = " (lower is better)" if name in lower else ""
            by_tokens.set(ylabel=f"held-out {name}{direction}", xlabel="tokens generated in training")
            by_time.set(xlabel=f"minutes of training{CLOCKS[clock]}")
            for axes in (by_tokens, by_time):
                axes.spines[["top", "right"]].set_visible(False)
                axes.grid(alpha=0.2)
        all_axes[0][0].legend(frameon=False)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _over_seeds(by_seed: dict[int, float]) -> dict:
    return {"mean": mean(by_seed.values()), "seeds": {str(seed): value for seed, value in by_seed.items()}}


def _each(over_seeds: dict) -> str:
    each = ", ".join(number(value, 3) for value in over_seeds["seeds"].values())
    return f"{number(over_seeds['mean'], 3)} ({each})"
