"""The page's drawings: matplotlib's, as inline SVG in the colors of the page's own light or dark theme.

Only numbers and our own words go into a drawing; names and texts stay in the templates, which escape them.
Whatever is told apart by color is told apart by dashes or shapes as well.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator

Point = tuple[float, float]

# matplotlib only takes fixed colors, so these stand in for colors of the page.
INK = "#010203"
COLORS = tuple(f"#01020{i}" for i in range(4, 10))
THEME = {INK: "currentColor"} | {color: f"var(--line{i})" for i, color in enumerate(COLORS)}
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (10, 2.5)), (0, (3, 1, 1, 1, 1, 1)))
SHAPES = ("o", "s", "^", "D", "v", "P")
AFTER, BEFORE = 0, 1  # their styles, wherever the two stand together
WIDTH, HEIGHT = 3.5, 1.7  # inches of a chart


class Line(NamedTuple):
    """A line of a chart: smoothed `ys` over `xs`, the band around it, and the raw points below it."""

    xs: list[float]
    ys: list[float]
    band: tuple[list[float], list[float]] | None = None  # lowest and highest
    raw: Sequence[Point] = ()


class Path(NamedTuple):
    """One run's exams, in their order: KL against score and against the referee, and the exam to be marked."""

    style: int
    kl: list[float]
    score: list[float]
    referee: list[float]
    mark: int | None


def style(i: int) -> dict:
    """The i-th way to draw a line. After six, colors come back with other dashes."""
    return {"color": COLORS[i % 6], "linestyle": DASHES[(i + i // 6) % 6], "linewidth": 1.6}


def chart(paint: Callable[..., None], salt: str, panels: int = 1, height: float = HEIGHT) -> Markup:
    """What `paint(*axes)` draws, as SVG. `salt` is different for each chart of a page: its ids are made from it."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 8, "path.simplify": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        all_axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
        for axes in all_axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set(color=INK, alpha=0.35, linewidth=0.6)
            axes.tick_params(colors=INK, width=0.6, length=2.5)
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
            axes.xaxis.label.set_color(INK)
            axes.yaxis.label.set_color(INK)
            axes.yaxis.set_major_locator(MaxNLocator(4))
        try:
            paint(*all_axes)
            for axes in all_axes:
                axes.ticklabel_format(axis="both", useOffset=False, scilimits=(-4, 5))
            return _svg(figure)
        except (ValueError, ArithmeticError):  # matplotlib, of numbers near the ends of what a float can hold
            return Markup("<p>These numbers are too large or too small to be drawn.</p>")


def curves(lines: dict[int, Line], salt: str) -> Markup:
    """Lines by their styles; with raw points as dots, with bands where there are any."""

    def paint(axes: Axes) -> None:
        for i, line in lines.items():
            if line.raw:
                _dots(axes, line.raw, COLORS[i % 6], alpha=0.4 if len(lines) == 1 else 0.25)
            if line.band:
                axes.fill_between(line.xs, *line.band, color=COLORS[i % 6], alpha=0.15, linewidth=0)
            axes.plot(line.xs, line.ys, **style(i))
        axes.autoscale_view()
        values = [y for line in lines.values() for y in [*line.ys, *(y for _, y in line.raw)]]
        if max(values) - min(values) <= 1e-9 * max(abs(max(values)), 1e-9):
            # A metric that never moved: its rounding errors are not blown up to fill the height.
            room = (abs(values[0]) or 1) / 2
            axes.set_ylim(values[0] - room, values[0] + room)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    return chart(paint, salt)


def histogram(before: Sequence[float], after: Sequence[float], salt: str, bins: int = 20) -> Markup:
    """How many completions have which score: after filled, before as a dashed outline."""
    values = [*before, *after]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = [low + (high - low) * i / bins for i in range(bins + 1)]

    def paint(axes: Axes) -> None:
        for values, which in ((after, AFTER), (before, BEFORE)):
            counts = count_in(values, edges)
            if which == AFTER:
                axes.stairs(counts, edges, fill=True, color=COLORS[AFTER], alpha=0.3, linewidth=0)
            axes.stairs(counts, edges, **style(which) | {"linewidth": 1.2})
        axes.set_xlabel("score")
        axes.set_ylabel("completions")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))

    return chart(paint, salt)


def count_in(values: Iterable[float], edges: Sequence[float]) -> list[int]:
    """How many of `values` lie in each of the equal bins between `edges`; the last one includes its upper edge."""
    counts, width = [0] * (len(edges) - 1), edges[1] - edges[0]
    for value in values:
        counts[min(int((value - edges[0]) / width), len(counts) - 1)] += 1
    return counts


def scatter(before: Sequence[Point], after: Sequence[Point], unit: str, salt: str) -> Markup:
    """Length (`unit`) against score: before as crosses, after as dots."""

    def paint(axes: Axes) -> None:
        xs, ys = zip(*before, *after, strict=True)
        dx, dy = ((max(side) - min(side) or 1) / n for side, n in ((xs, 110), (ys, 45)))
        corners = [(x + a * dx, y + b * dy) for x, y in before for a, b in ((-1, -1), (1, 1), (-1, 1), (1, -1))]
        _strokes(axes, corners, edgecolor=COLORS[BEFORE], linewidth=0.7, alpha=0.7)
        _dots(axes, after, COLORS[AFTER], alpha=0.6, width=3.6)
        axes.autoscale_view()
        axes.set_xlabel(f"length in {unit}")
        axes.set_ylabel("score")

    return chart(paint, salt)


def over_optimization(paths: Sequence[Path], salt: str) -> Markup:
    """Training score (above) and referee (below) by KL, exam after exam; a marked exam has a line through both."""

    def paint(above: Axes, below: Axes) -> None:
        for path in paths:
            look = style(path.style) | {"marker": SHAPES[path.style % 6], "markersize": 3}
            for axes, values in ((above, path.score), (below, path.referee)):
                axes.plot(path.kl, values, **look)
                if path.mark is not None:
                    axes.axvline(path.kl[path.mark], color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
                    peak = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": INK}
                    axes.plot(path.kl[path.mark], values[path.mark], marker="*", **peak)
        above.set_ylabel("training score")
        below.set_ylabel("referee")
        below.set_xlabel("KL to the start, nats a completion")

    return chart(paint, salt, panels=2, height=2.9)


def swatch(i: int) -> Markup:
    """A piece of the i-th line, for legends."""
    figure = Figure(figsize=(0.45, 0.12))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.plot([0, 1], [0, 0], clip_on=False, **style(i) | {"linewidth": 2})
    axes.set_xlim(0, 1)
    return _svg(figure, "swatch")


def _dots(axes: Axes, points: Sequence[Point], color: str, alpha: float, width: float = 2.4) -> None:
    """All points as strokes without length and with round ends: dots in a few bytes each."""
    _strokes(axes, [p for point in points for p in (point, point)], edgecolor=color, linewidth=width, alpha=alpha)


def _strokes(axes: Axes, corners: Sequence[Point], **look) -> None:
    """Strokes from each even corner to the next, as one path."""
    if corners:
        codes = [Outline.MOVETO, Outline.LINETO] * (len(corners) // 2)
        axes.add_patch(PathPatch(Outline(corners, codes), facecolor="none", capstyle="round", **look))


def _svg(figure: Figure, kind: str = "chart") -> Markup:
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True)
    return Markup(inline_svg(target.getvalue(), kind))


def inline_svg(svg: str, kind: str = "chart") -> str:
    """matplotlib's file as a part of a page: no prologue, no metadata, no ids twice on a page, the theme's colors.

    The text around the drawing says what it shows; `kind` is its class in the page's style.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"|<svg', f'<svg aria-hidden="true" class="{kind}"', svg, count=1)
    # A tenth of a point is finer than a screen shows. Only paths: the labels are numbers too.
    svg = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"-?\d+\.\d+", _tenth, path[0]), svg)
    for color, var in THEME.items():
        svg = svg.replace(color, var)
    return re.sub(r"\s*\n\s*", " ", svg)


def _tenth(found: re.Match[str]) -> str:
    return f"{float(found[0]):.1f}".removesuffix(".0")
