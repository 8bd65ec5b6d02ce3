"""The reward model: is its confidence earned, how does it fare by margin, where was it sure and wrong.

Reads what the reward-model stage leaves: `summary.json` (the calibration over all held-out pairs) and `pairs.jsonl`
(the pairs with their scores, up to 500).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.ticker import MultipleLocator

from pipeline.report.charts import COLORS, INK, chart
from pipeline.report.numbers import is_number
from pipeline.runs.folder import SUMMARY
from pipeline.safety import shapes
from pipeline.safety.reading import read_json, read_lines
from rewards.text import text_of

PAIRS = "pairs.jsonl"  # the name in pipeline/stages/reward_model.py, which would bring torch and TRL with it
GROUPS = 6  # of pairs with like margins
MISTAKES = 6
MAX_TEXT = 1500  # characters of a prompt or completion


class Point(NamedTuple):
    """Pairs of one bin: where they lie, and the share that the reward model put in the right order."""

    x: float
    accuracy: float
    pairs: int
    range: str


def reward_model_section(run_dir: str | Path) -> dict[str, Any] | None:
    """What templates/reward_model.html.j2 shows as `reward_model`.

    Args:
        run_dir: folder of a reward-model stage, or of a run that has one called `reward` beside it.

    Returns:
        None when there is no `pairs.jsonl`.

    Raises:
        UserError: when a file is not what the stage writes.
    """
    folder = next((f for f in (Path(run_dir), Path(run_dir).parent / "reward") if (f / PAIRS).is_file()), None)
    pairs = read_pairs(folder / PAIRS) if folder else []
    if not pairs:
        return None
    margins = [margin(pair) for pair in pairs]
    summary = read_json(folder / SUMMARY, shapes.SUMMARY) if (folder / SUMMARY).is_file() else {}
    calibration, by_margin = calibration_points(summary.get("calibration_bins") or []), margin_points(margins)
    wrong, accuracy = mistakes(pairs), summary.get("accuracy")
    return {
        "folder": folder.name,
        "pairs": len(pairs),
        "heldout_pairs": summary.get("heldout_pairs", len(pairs)),
        "accuracy": accuracy if is_number(accuracy) else sum(map(rightness, margins)) / len(pairs),
        "calibration_error": summary.get("calibration_error"),
        "calibration": calibration,
        "calibration_svg": draw(calibration, "reward-model-calibration", ideal=True) if calibration else None,
        "by_margin": by_margin,
        "by_margin_svg": draw(by_margin, "reward-model-margin"),
        "wrong": sum(m < 0 for m in margins),
        "mistakes": [_show(pair) for pair in wrong],
    }


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """The pairs that have finite scores; the others say nothing of their order."""
    rows = read_lines(path, shapes.PAIR)
    return [row for row in rows if is_number(row["score_chosen"]) and is_number(row["score_rejected"])]


def margin(pair: dict[str, Any]) -> float:
    """score(chosen) - score(rejected); above 0 the reward model has them in the right order."""
    return pair["score_chosen"] - pair["score_rejected"]


def rightness(margin: float) -> float:
    """1 for the right order, 0 for the wrong one; a tie is half right."""
    return 0.5 if margin == 0 else float(margin > 0)


def confidence(margin: float) -> float:
    """Probability that the reward model gives the order that it chose itself: sigmoid(|margin|), 0.5 to 1."""
    return 1 / (1 + math.exp(-abs(margin)))


def calibration_points(bins: Sequence[dict[str, Any]]) -> list[Point]:
    """The bins of `calibrate` that hold pairs: mean confidence against share in right order."""
    return [
        Point(b["confidence"], b["accuracy"], b["pairs"], f"{100 * b['from']:.0f}–{100 * b['to']:.0f} %")
        for b in bins
        if b["pairs"] and is_number(b.get("confidence")) and is_number(b.get("accuracy"))
    ]


def margin_points(margins: Sequence[float], groups: int = GROUPS) -> list[Point]:
    """`groups` groups of pairs, of equal size but for one, by rising |margin|: mean |margin| against accuracy."""
    ordered = sorted(margins, key=abs)
    cuts = [round(len(ordered) * i / groups) for i in range(groups + 1)]
    found = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        if group := ordered[start:end]:
            sizes = [abs(m) for m in group]
            label = f"{sizes[0]:.2f}–{sizes[-1]:.2f}"
            found.append(Point(sum(sizes) / len(group), sum(map(rightness, group)) / len(group), len(group), label))
    return found


def mistakes(pairs: Sequence[dict[str, Any]], limit: int = MISTAKES) -> list[dict[str, Any]]:
    """The pairs in the wrong order, the most confident first."""
    return sorted((pair for pair in pairs if margin(pair) < 0), key=margin)[:limit]


def draw(points: Sequence[Point], salt: str, ideal: bool = False) -> Markup:
    """Accuracy of each bin with its standard error; the larger the dot, the more pairs. `ideal` adds the diagonal."""
    xs, ys = [p.x for p in points], [p.accuracy for p in points]
    largest = max(p.pairs for p in points)
    errors = [math.sqrt(p.accuracy * (1 - p.accuracy) / p.pairs) for p in points]

    def paint(axes) -> None:
        if ideal:
            axes.plot([0.5, 1], [0.5, 1], color=INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)))
            axes.set_xlim(0.48, 1.02)
        axes.errorbar(xs, ys, yerr=errors, color=COLORS[0], linewidth=1.4, elinewidth=0.8, capsize=2)
        axes.scatter(xs, ys, s=[12 + 60 * p.pairs / largest for p in points], color=COLORS[0], zorder=3)
        axes.yaxis.set_major_locator(MultipleLocator(0.1))
        axes.set_ylim(min(0.45, *(y - e - 0.03 for y, e in zip(ys, errors, strict=True))), 1.03)

    return chart(paint, salt, height=2.5)


def _show(pair: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": _text(pair.get("prompt")),
        "chosen": _text(pair["chosen"]),
        "rejected": _text(pair["rejected"]),
        "score_chosen": pair["score_chosen"],
        "score_rejected": pair["score_rejected"],
        "confidence": confidence(margin(pair)),
    }


def _text(value: Any) -> str:
    text = text_of(value).strip()
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT} more characters)"
