"""The card's picture: what moved in training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.hub.card.run import Run
from pipeline.report.numbers import is_number

CURVES = "curves.png"
# Each panel shows the first of these metrics that the run has.
PANELS = (
    ("score", "reward"),
    ("kl",),
    ("loss",),
    ("accuracy", "mean_token_accuracy"),
    ("margin",),
    ("entropy",),
    ("length/mean", "completions/mean_length"),
    ("loss/value",),
    ("explained_variance",),
)


def draw_curves(run: Run, path: Path) -> list[str]:
    """Draws up to six metrics over the optimizer steps as a PNG and returns their names; none: no picture."""
    panels = []
    for names in PANELS:
        name = next((name for name in names if len(_points(run.metrics, name)) > 1), None)
        # PPO's loss is no measure of how it is doing; its parts are.
        if name is not None and (name, run.kind) != ("loss", "policy"):
            panels.append(name)
    panels = panels[:6]
    if not panels:
        path.unlink(missing_ok=True)
        return []
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    picture = Figure(figsize=(3.2 * columns, 2.1 * lines), layout="constrained", dpi=100)
    FigureCanvasAgg(picture)
    for axes, name in zip(picture.subplots(lines, columns, squeeze=False).flat, panels + [None] * 5, strict=False):
        if name is None:
            axes.set_axis_off()
            continue
        points = _points(run.metrics, name)
        axes.plot(
            *zip(*points, strict=True), color="#0b62b0", linewidth=1.4, marker=".", markersize=3, label="training"
        )
        exams = _points(run.exams, name)
        if exams and name in ("score", "kl"):
            axes.plot(
                *zip(*exams, strict=True), color="#b3480b", linestyle="--", marker="o", markersize=4, label="held out"
            )
            axes.legend(fontsize=7, frameon=False)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    picture.supxlabel("optimizer steps", fontsize=8)
    picture.savefig(path, format="png", metadata={"Software": None})
    return panels


def _points(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if is_number(row.get("step")) and is_number(row.get(name))]
