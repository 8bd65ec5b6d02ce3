"""The baselines of an evaluation: best-of-n of the start as a curve, and the start made as sharp as the policy.

Reads the `summary.json` of `make eval`, in the folder `eval` beside the run, or in the run's own folder.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.ticker import NullLocator, ScalarFormatter

from pipeline.report.charts import COLORS, chart, style
from pipeline.report.numbers import is_number, number
from pipeline.runs.folder import SUMMARY
from pipeline.safety import shapes
from pipeline.safety.reading import read_json

EVAL = "eval"  # as recipes call the folder
CURVE = 0  # its style; the candidates have the next ones


class Panel(NamedTuple):
    """One measure of the chosen answers over n, and the candidates that are measured by it."""

    name: str
    svg: Markup
    lines: list[tuple[int, str, str]]  # style, who, worth so many samples


class Row(NamedTuple):
    """One measure of the start, of the control and of the policy, each with its interval."""

    name: str
    figures: list[str]


def baselines_section(run_dir: str | Path) -> dict[str, Any] | None:
    """What templates/baselines.html.j2 shows as `baselines`.

    Args:
        run_dir: folder of an evaluation, or of a run beside which there is one (`eval`) that has it as a candidate.

    Returns:
        None when there is no evaluation with a baseline in it.

    Raises:
        UserError: when its summary is not what the stage writes.
    """
    run, own = Path(os.path.abspath(run_dir)), Path(run_dir) / SUMMARY
    path = own if _is_eval(own) else run.parent / EVAL / SUMMARY
    if not _is_eval(path):
        return None
    summary = read_json(path, shapes.EVALUATION)
    known = {name: Path(os.path.abspath(it["path"])) for name, it in summary["candidates"].items()}
    shown = [name for name in known if path == own or known[name] == run]
    best = summary.get("best_of")
    panels = _panels(best, shown) if best else []
    controls = [
        _control(summary, policy, found)
        for policy, found in (summary.get("sharpened") or {}).items()
        if policy in shown
    ]
    if not shown or not (panels or controls):
        return None
    return {"folder": path.parent.name, "prompts": summary["prompts"], "best": best, "panels": panels} | {
        "start": summary["reference"],
        "controls": controls,
    }


def _is_eval(path: Path) -> bool:
    return path.is_file() and read_json(path).get("stage") == "eval"


def _panels(best: dict[str, Any], shown: Sequence[str]) -> list[Panel]:
    curve, found = best["curve"], []
    for name in ("score", *curve[0]["referee"]):
        points = [(p["n"], p["score"] if name == "score" else p["referee"][name]) for p in curve]
        points = [(n, figure) for n, figure in points if is_number(figure["value"])]
        worths = {
            who: it["score"] if name == "score" else it["referee"].get(name)
            for who, it in best["worth"].items()
            if who in shown
        }
        lines = [(i, who, it) for i, (who, it) in enumerate(worths.items(), start=CURVE + 1) if it]
        if len(points) > 1:
            # one that is far below the curve would leave it no height
            drawn = {i: it["value"] for i, _, it in lines if is_number(it["value"]) and it["samples"] != 0}
            legend = [(i, who, worth(it["samples"], best["samples"])) for i, who, it in lines]
            found.append(Panel(name, draw(points, drawn, f"best of n {name}"), legend))
    return found


def worth(samples: float | None, most: int) -> str:
    """How many samples something is worth, in words."""
    if samples is None:
        return f"more than {most} samples"
    return "less than one sample" if samples < 1 else f"{number(samples, 1)} samples"


def draw(points: Sequence[tuple[int, dict[str, Any]]], candidates: dict[int, float], salt: str) -> Markup:
    """A curve over n (each doubling as wide) with its 95% intervals, and candidates by style as level lines."""
    ns = [n for n, _ in points]

    def paint(axes) -> None:
        axes.set_xscale("log", base=2)
        if all(is_number(figure[end]) for _, figure in points for end in ("low", "high")):
            ends = ([figure[end] for _, figure in points] for end in ("low", "high"))
            axes.fill_between(ns, *ends, color=COLORS[CURVE], alpha=0.15, linewidth=0)
        axes.plot(ns, [figure["value"] for _, figure in points], marker="o", markersize=3, **style(CURVE))
        for i, value in candidates.items():
            axes.axhline(value, **style(i))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xticks(ns)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("best of n")

    return chart(paint, salt)


def _control(summary: dict[str, Any], policy: str, found: dict[str, Any]) -> dict[str, Any]:
    """The control of one policy: how it was made, and the measures of start, control and policy side by side."""
    rows = []
    if found["temperature"] is not None:
        columns = [summary["candidates"][name]["sampled"] for name in (summary["reference"], found["name"], policy)]
        rows = [Row(name, [_figure(column.get(name)) for column in columns]) for name in columns[2]]
    return {"policy": policy, **found, "rows": rows}


def _figure(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "–"
    ends = f" [{number(figure['low'])}, {number(figure['high'])}]" if is_number(figure["low"]) else ""
    return number(figure["value"]) + ends
