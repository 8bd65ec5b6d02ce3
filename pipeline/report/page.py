"""One self-contained HTML page about a run: curves, scores before and after, samples side by side, settings.

The page asks for nothing from outside and runs no script, so it can be mailed or opened from a disk. It reads what
every stage leaves in its folder (metrics.jsonl, summary.json, config.yaml) and, from PPO, samples.jsonl.
Text from models and data reaches the page only through the template's autoescape.
"""

import io
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.ticker import MaxNLocator

from pipeline.errors import UserError
from pipeline.run_folder import CONFIG, METRICS, SUMMARY, read_heldout, read_metrics

SAMPLES = "samples.jsonl"
REPORT = "report.html"
MAX_SAMPLES = 20
MAX_POINTS = 240  # a curve this wide shows no more; longer ones are averaged in equal bins
MAX_TEXT = 3000  # characters of one prompt or completion

# Which curves stand together, in this order; the first match counts. Names are those that the trainers log.
GROUPS: tuple[tuple[str, str], ...] = (
    ("Scores", r"^(scores?|rewards?|gold)(/|_|$)"),
    ("Distance to the reference", r"^(kl|ref_kl|non_score_reward|objective)(_coef|/|$)"),
    ("Text", r"^(length|completions?|finish\w*|eos)(/|_|$)"),
    ("Policy", r"^(entropy|loss/policy|clip_fraction/policy|approx_kl|ratio|clip_ratio|policy)(/|_|$)"),
    ("Critic", r"^(loss/value|clip_fraction/value|explained_variance|values?|returns?|critic|advantages?)(/|_|$)"),
    ("Held out", r"^eval(/|_)"),
    ("Reward model", r"^(accuracy|margin|min_reward|max_reward|mean_reward)(/|_|$)"),
    ("Loss", r"^(loss|mean_token_accuracy|perplexity)$"),
    ("Time", r"^(time|tokens_per_second)(/|_|$)"),
)
OTHER = "Other"
CLOSED = {"Time", OTHER}
# Counters and what a Trainer says once at its end: no curves.
NOT_CURVES = re.compile(r"^(step|epoch|episodes|tokens|num_tokens|total_flos|train_\w+|num_input_tokens_seen)$")
# matplotlib only takes fixed colors, so these two stand in for colors of the page's own light or dark theme.
_INK, _LINE = "#010203", "#010204"


class Curve(NamedTuple):
    """One metric over the steps of one stage, drawn."""

    name: str
    meaning: str
    last: str
    label: str
    svg: Markup


class Stage(NamedTuple):
    """What one output folder holds. `rows` and `summary` are empty when the file is missing."""

    name: str
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    config: str


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page about the stage in `run_dir` and about the SFT and reward stages beside it, if they are there.

    `out` is the page's path; by default it is `report.html` in `run_dir`. An older page is replaced.
    Raises `UserError` when `run_dir` holds neither metrics nor a summary.
    """
    run_dir = Path(run_dir)
    main = read_stage(run_dir)
    if not main.rows and not main.summary:
        raise UserError(f"{run_dir} has no {METRICS} and no {SUMMARY}: give the output folder of a finished stage")
    beside = [read_stage(run_dir.parent / name) for name in ("sft", "reward") if name != run_dir.name]
    stages = [main] + ([stage for stage in beside if stage.rows] if run_dir.name not in ("sft", "reward") else [])
    samples = [show_sample(row) for row in read_jsonl(run_dir / SAMPLES, MAX_SAMPLES)]
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=" · ".join(part for part in (run_dir.resolve().parent.name, run_dir.resolve().name) if part),
            tiles=tiles(main.summary),
            table=before_after(main.summary),
            samples=samples,
            stages=[
                {"name": s.name, "groups": curve_groups(s), "numbers": single_numbers(s), "config": s.config}
                for s in stages
            ],
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        )
    )
    out = run_dir / REPORT if out is None else Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.tmp")
    # A model can produce half a character, which utf-8 cannot hold: it is shown as "?".
    aside.write_bytes(page.encode("utf-8", "replace"))
    os.replace(aside, out)
    return out


def environment() -> jinja2.Environment:
    """Templates with autoescape on for every file; a name that the template expects and does not get is an error."""
    loader = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    env = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    env.filters["number"] = number
    return env


def read_stage(folder: Path) -> Stage:
    rows = (read_metrics(folder) if (folder / METRICS).is_file() else []) + heldout_points(folder)
    summary: dict[str, Any] = {}
    if (folder / SUMMARY).is_file():
        try:
            summary = json.loads((folder / SUMMARY).read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{folder / SUMMARY} is not JSON: {error}") from error
    config = (folder / CONFIG).read_text("utf-8") if (folder / CONFIG).is_file() else ""
    return Stage(folder.name, rows, summary, config)


def heldout_points(folder: Path) -> list[dict[str, Any]]:
    """Exams on held-out prompts as metrics `eval/…`; before and after alone are in the table, and make no curve."""
    exams = read_heldout(folder)
    counters = {"step", "update", "episodes", "tokens", "seconds", "cpu_seconds"}
    return [
        {"step": exam["step"]}
        | {f"eval/{n}": x for n, x in flatten({k: v for k, v in exam.items() if k not in counters})}
        for exam in (exams if len(exams) > 2 else [])
    ]


def read_jsonl(path: Path, limit: int) -> list[dict[str, Any]]:
    """The first `limit` rows of a JSON-lines file; none when there is no file."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    with path.open(encoding="utf-8") as file:
        for line_number, line in enumerate(file, start=1):
            if len(rows) == limit:
                break
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {line_number} is not JSON: {error.msg}") from error
    return rows


def as_text(value: Any) -> str:
    """A prompt or completion as plain text; conversations one message a paragraph, each headed by its role."""
    if isinstance(value, list):
        value = "\n\n".join(
            f"{m.get('role', '?')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in value
        )
    text = "" if value is None else str(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT} more characters)"


def show_sample(row: dict[str, Any]) -> dict[str, Any]:
    before, after = row.get("scores_before") or {}, row.get("scores_after") or {}
    return {
        "prompt": as_text(row.get("prompt")),
        "before": as_text(row.get("before")),
        "after": as_text(row.get("after")),
        "scores_before": [(name, before.get(name), "") for name in union(before, after)],
        "scores_after": [
            (name, after.get(name), arrow(before.get(name), after.get(name))) for name in union(before, after)
        ],
    }


def number(value: Any, decimals: int | None = None) -> str:
    """A figure as people write it: three significant digits (or so many decimals), a real minus sign, – for none."""
    if not is_number(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif isinstance(value, int):
        text = str(value)
    else:
        text = f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{number(seconds)} s"


def arrow(before: Any, after: Any) -> str:
    if not (is_number(before) and is_number(after)) or number(before) == number(after):
        return ""
    return "▲" if after > before else "▼"


def union(*mappings: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def before_after(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: each mean on the held-out prompts before and after, the referee (`gold`) first."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    rows = {name: (before.get(name), after.get(name)) for name in union(before, after)}
    length = summary.get("length")
    if isinstance(length, dict) and {"before", "after"} <= set(length) and "length" not in rows:
        rows["length"] = (length["before"], length["after"])
    table = []
    for name in sorted(rows, key=lambda name: name != "gold"):
        old, new = rows[name]
        both = is_number(old) and is_number(new)
        change = new - old if both else None
        # One row, one number of decimals: so many that a share in 0..1 shows three.
        largest = max((abs(value) for value in (old, new) if is_number(value)), default=0)
        decimals = 3 if largest <= 1 else 2 if largest < 10 else 1
        table.append(
            {
                "name": name,
                "note": {"gold": "referee, never trained on", "length": "tokens"}.get(name, ""),
                "before": number(old, decimals),
                "after": number(new, decimals),
                "change": ("+" if both and change > 0 else "") + number(change, decimals),
                "arrow": arrow(old, new),
            }
        )
    return table


def tiles(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The few figures at the top of the page: (what, figure, unit or remark)."""
    found = []
    for row in before_after(summary):
        if row["name"] in ("gold", "length"):
            found.append(
                {
                    "what": row["name"],
                    "figure": f"{row['before']} → {row['after']}",
                    "note": row["note"],
                }
            )
    if is_number(summary.get("kl")):
        found.append({"what": "KL to the reference", "figure": number(summary["kl"]), "note": "nats a completion"})
    if is_number(summary.get("accuracy")):
        found.append({"what": "accuracy", "figure": number(summary["accuracy"]), "note": "held-out pairs"})
    if is_number(summary.get("episodes")):
        found.append({"what": "episodes", "figure": number(int(summary["episodes"])), "note": "completions sampled"})
    if is_number(summary.get("seconds")):
        found.append({"what": "time", "figure": duration(summary["seconds"]), "note": ""})
    return found


def single_numbers(stage: Stage) -> list[tuple[str, str]]:
    """What is no curve and stands in no table above: the rest of the summary, and metrics that were logged once."""
    flat = dict(flatten({k: v for k, v in stage.summary.items() if k not in ("before", "after", "samples")}))
    once = {n: p[0][1] for n, p in all_points(stage.rows, curves=False).items() if n != "step" and len(p) == 1}
    return [
        (name, number(value)) for name, value in (once | flat).items() if isinstance(value, str) or is_number(value)
    ]


def flatten(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flatten(item, f"{prefix}{key}/")
        elif not isinstance(item, list):
            yield f"{prefix}{key}", item


def all_points(rows: Sequence[dict[str, Any]], curves: bool = True) -> dict[str, list[tuple[float, float]]]:
    """name -> [(step, value), …] of every metric that is a finite number; with `curves`, those worth a curve."""
    points: dict[str, list[tuple[float, float]]] = {}
    for index, row in enumerate(rows):
        step = row.get("step", index)
        for name, value in row.items():
            if is_number(value) and is_number(step) and not (curves and NOT_CURVES.match(name)):
                points.setdefault(name, []).append((float(step), float(value)))
    return {name: p for name, p in points.items() if len(p) > 1} if curves else points


def curve_groups(stage: Stage) -> list[dict[str, Any]]:
    groups: dict[str, list[Curve]] = {title: [] for title, _ in GROUPS} | {OTHER: []}
    meanings = metric_meanings() if stage.name == "ppo" else {}
    for name, points in all_points(stage.rows).items():
        title = next((title for title, pattern in GROUPS if re.search(pattern, name)), OTHER)
        groups[title].append(draw_curve(name, points, meaning_of(name, meanings)))
    return [{"title": t, "curves": c, "open": t not in CLOSED} for t, c in groups.items() if c]


def metric_meanings() -> dict[str, str]:
    """The trainer's own list of what it logs. Imported here: a page about SFT alone needs no PPO."""
    from pipeline.ppo.metrics import METRICS as meanings

    return meanings


def meaning_of(name: str, meanings: dict[str, str]) -> str:
    return meanings.get(name) or meanings.get(f"{name.split('/')[0]}/<reward>", "")


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points: neighbours are averaged in bins of equal size."""
    size = math.ceil(len(points) / limit)
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential moving average with weight 2 / (span + 1) for the newest value, and no pull towards a start at 0.

    Dividing by the sum of the weights, 1 - (1 - a)^t, removes that pull (Kingma and Ba, arXiv 1412.6980, section 3).
    """
    a, mean, smoothed = 2 / (span + 1), 0.0, []
    for t, value in enumerate(values, start=1):
        mean = (1 - a) * mean + a * value
        smoothed.append(mean / (1 - (1 - a) ** t) if a < 1 else value)
    return smoothed


def draw_curve(name: str, points: Sequence[tuple[float, float]], meaning: str = "") -> Curve:
    """Raw points with the smoothed line over them, as inline SVG whose colors are those of the page."""
    points = thin(points)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    smoothed = smooth(ys, max(1.0, len(ys) / 8))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8, "path.simplify": False}):
        figure = Figure(figsize=(3.5, 1.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        # All points as one path of strokes without length and with round ends: dots in a few bytes each.
        corners = [corner for point in points for corner in (point, point)]
        codes = [matplotlib.path.Path.MOVETO, matplotlib.path.Path.LINETO] * len(points)
        dots = matplotlib.path.Path(corners, codes)
        axes.add_patch(PathPatch(dots, edgecolor=_LINE, facecolor="none", linewidth=2.4, alpha=0.4, capstyle="round"))
        axes.plot(xs, smoothed, color=_LINE, linewidth=1.6)
        axes.autoscale_view()
        if max(ys) - min(ys) <= 1e-9 * max(abs(max(ys)), 1e-9):
            # A metric that never moved: its rounding errors are not blown up to fill the height.
            axes.set_ylim(ys[0] - (abs(ys[0]) or 1) / 2, ys[0] + (abs(ys[0]) or 1) / 2)
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-4, 5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=_INK, alpha=0.35, linewidth=0.6)
        axes.tick_params(colors=_INK, width=0.6, length=2.5)
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True)
    label = (
        f"{name} over {len(points)} points: from {number(ys[0])} to {number(ys[-1])}, smoothed {number(smoothed[-1])}"
    )
    return Curve(name, meaning, number(smoothed[-1]), label, Markup(inline_svg(target.getvalue())))


def inline_svg(svg: str) -> str:
    """matplotlib's file as a part of a page: no prologue, no metadata, no ids twice on a page, the theme's colors.

    Only numbers go into the drawing; names and texts stay in the template, which escapes them.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"|<svg', '<svg aria-hidden="true" class="curve"', svg, count=1)
    # A tenth of a point is finer than a screen shows. Only paths: the labels are numbers too.
    svg = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"-?\d+\.\d+", tenth, path[0]), svg)
    svg = svg.replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    return re.sub(r"\s*\n\s*", " ", svg)


def tenth(found: re.Match[str]) -> str:
    return f"{float(found[0]):.1f}".removesuffix(".0")
