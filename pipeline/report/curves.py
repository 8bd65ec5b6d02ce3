"""Curves over the training: which metrics are curves, which stand together, smoothing, several seeds as one band."""

import math
import re
from collections.abc import Collection, Sequence
from statistics import fmean as mean
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.report import charts
from pipeline.report.numbers import is_number, number
from pipeline.report.runs import Contestant, Run
from pipeline.watching import metrics

Point = tuple[float, float]

MAX_POINTS = 240  # a curve this wide shows no more; longer ones are averaged in equal bins
# Which curves stand together, in this order; the first match counts. Names are those that the trainers log.
GROUPS: tuple[tuple[str, str], ...] = (
    ("Scores", r"^(scores?|rewards?|advantage|gold)(/|_|$)|/spread$"),
    ("Distance to the reference", r"^(kl|ref_kl|non_score_reward|objective)(_coef|/|$)"),
    ("Text", r"^(length|completions?|finish\w*|eos|repetition)(/|_|$)"),
    ("Policy", r"^(entropy|loss/policy|clip_fraction/policy|approx_kl|ratio|clip_ratio|policy)(/|_|$)"),
    (
        "Critic",
        r"^(loss/(value|q|v|conservative)|q$|clip_fraction/value|explained_variance|values?|returns?|critic|advantages?)"
        r"(/|_|$)",
    ),
    ("Held out", r"^eval(/|_)"),
    ("Reward model", r"^(accuracy|margin|min_reward|max_reward|mean_reward)(/|_|$)"),
    ("Loss", r"^(loss|mean_token_accuracy|perplexity|skipped_steps)$"),
    ("Time", r"^(time|tokens_per_second)(/|_|$)"),
)
OTHER = "Other"
CLOSED = {"Time", OTHER}
# Counters and what a Trainer says once at its end: no curves.
NOT_CURVES = re.compile(r"^(step|epoch|episodes|tokens|num_tokens|total_flos|train_\w+|num_input_tokens_seen)$")
TIME_SPLIT = "time/"
PPO = ("ppo", "a2c", "reinforce")  # whose figures metrics.PPO explains


class Curve(NamedTuple):
    """One metric over the training, drawn: one line for each contestant."""

    name: str
    meaning: str
    lines: list[tuple[int, str, str]]  # its style, what it is ("" for a single one), its last value
    label: str  # the chart in words
    svg: Markup


def all_points(rows: Sequence[dict[str, Any]], curves: bool = True, x: str = "step") -> dict[str, list[Point]]:
    """name -> [(x, value), …] of every metric that is a finite number; with `curves`, those worth a curve."""
    points: dict[str, list[Point]] = {}
    for index, row in enumerate(rows):
        at = row.get(x, index if x == "step" else None)
        for name, value in row.items():
            if is_number(value) and is_number(at) and not (curves and NOT_CURVES.match(name)):
                points.setdefault(name, []).append((float(at), float(value)))
    return {name: p for name, p in points.items() if len(p) > 1} if curves else points


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: neighbours are averaged in bins of equal size."""
    size = math.ceil(len(points) / limit) or 1
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [(mean(x for x, _ in b), mean(y for _, y in b)) for b in bins]


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential moving average with weight 2 / (span + 1) for the newest value, and no pull towards a start at 0.

    Dividing by the sum of the weights, 1 - (1 - a)^t, removes that pull (Kingma and Ba, arXiv 1412.6980, section 3).
    """
    a, average, smoothed = 2 / (span + 1), 0.0, []
    for t, value in enumerate(values, start=1):
        average = (1 - a) * average + a * value
        smoothed.append(average / (1 - (1 - a) ** t) if a < 1 else value)
    return smoothed


def line_of(seeds: Sequence[Sequence[Point]]) -> charts.Line:
    """One contestant's line from the points of its seeds: the mean of their smoothed curves, between the lowest and
    the highest, where all of them have a point. A single seed has its raw points instead of a band."""
    shared = set.intersection(*({x for x, _ in points} for points in seeds))
    thinned = [thin([point for point in points if point[0] in shared]) for points in seeds]
    xs = [x for x, _ in thinned[0]]
    columns = list(zip(*(smooth([y for _, y in p], max(1.0, len(p) / 8)) for p in thinned), strict=True))
    ys = [mean(column) for column in columns]
    if len(seeds) == 1:
        return charts.Line(xs, ys, raw=thinned[0])
    return charts.Line(xs, ys, band=([min(column) for column in columns], [max(column) for column in columns]))


def draw_curve(
    name: str, seeds_of: dict[str, Sequence[Sequence[Point]]], meaning: str = "", salt: str = ""
) -> Curve | None:
    """The chart of one metric; None when there is nothing to draw.

    Args:
        seeds_of: what a line is ("" for the only one) -> for each of its seeds the points; the i-th has the i-th
            style, also where others have no points.
        salt: keeps the ids of charts with the same name on one page apart.
    """
    lines = [(i, label, line_of(seeds)) for i, (label, seeds) in enumerate(seeds_of.items()) if seeds]
    lines = [(i, label, line) for i, label, line in lines if line.xs]
    if not lines:
        return None
    words = []
    for _, label, line in lines:
        first, last = (line.raw[i][1] if line.raw else line.ys[i] for i in (0, -1))
        who = f"{label}: " if label else ""
        words.append(f"{who}from {number(first)} to {number(last)}, smoothed {number(line.ys[-1])}")
    count = max(len(line.xs) for *_, line in lines)
    svg = charts.curves({i: line for i, _, line in lines}, f"{salt}:{name}")
    lasts = [(i, label, number(line.ys[-1])) for i, label, line in lines]
    return Curve(name, meaning, lasts, f"{name} over {count} points: {'; '.join(words)}", svg)


def curve_groups(of: Sequence[Contestant], salt: str = "") -> list[dict[str, Any]]:
    """All curves of the contestants, overlaid, in their groups: title, curves, and whether it is open at first."""
    groups: dict[str, list[Curve]] = {title: [] for title, _ in GROUPS} | {OTHER: []}
    x = x_axis(of)
    points = [[all_points(run.rows, x=x) for run in contestant.runs] for contestant in of]
    names = list(dict.fromkeys(name for seeds in points for seed in seeds for name in seed))
    meanings = metric_meanings({run.algorithm for c in of for run in c.runs})
    if len(of) == 1 and len(parts := [name for name in names if name.startswith(TIME_SPLIT)]) > 1:
        # Where the time of one run goes is one picture; several runs are compared part by part.
        split = {name.removeprefix(TIME_SPLIT): [s[name] for s in points[0] if name in s] for name in parts}
        groups["Time"].append(draw_curve("time split", split, "seconds an update, by what they were spent on", salt))
        names = [name for name in names if name not in parts]
    for name in names:
        title = next((title for title, pattern in GROUPS if re.search(pattern, name)), OTHER)
        seeds_of = {c.label: [s[name] for s in seeds if name in s] for c, seeds in zip(of, points, strict=True)}
        if len(of) == 1:
            seeds_of = {"": seeds_of[of[0].label]}
        groups[title].append(draw_curve(name, seeds_of, meaning_of(name, meanings), salt))
    drawn = {title: [curve for curve in found if curve] for title, found in groups.items()}
    return [{"title": t, "curves": c, "open": t not in CLOSED} for t, c in drawn.items() if c]


def spread_curves(run: Run) -> list[Curve]:
    """How far the members of each ensemble of reward models disagreed about what was sampled in training."""
    meaning = "mean over completions of the standard deviation between the reward models, in score units"
    found = [
        draw_curve(name, {"": [points]}, meaning, "disagreement")
        for name, points in all_points(run.rows).items()
        if name.endswith("/spread")
    ]
    return [curve for curve in found if curve]


def x_axis(of: Sequence[Contestant]) -> str:
    """What curves run over: steps; of several runs completions, if all count them: a step is not the same to all."""
    runs = [run for contestant in of for run in contestant.runs]
    counted = all(any("episodes" in row for row in run.rows) for run in runs)
    return "episodes" if len(runs) > 1 and counted else "step"


def metric_meanings(algorithms: Collection[str]) -> dict[str, str]:
    """What the trainers of these algorithms log, by name."""
    offline = (metrics.ILQL if "ilql" in algorithms else {}) | (metrics.DPO if "dpo" in algorithms else {})
    return offline | (metrics.PPO if set(PPO) & set(algorithms) else {})


def meaning_of(name: str, meanings: dict[str, str]) -> str:
    return meanings.get(name) or meanings.get(f"{name.split('/')[0]}/<reward>", "")
