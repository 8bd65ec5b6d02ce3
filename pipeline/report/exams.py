"""Over-optimization: the training score against the referee that no training saw, by KL, exam after exam.

A policy that is pushed further from its start gains in the reward that it is trained on, while what the reward stands
for first rises and then falls (Gao, Schulman and Hilton 2023, arXiv 2210.10760, Figure 1).
"""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.report import charts
from pipeline.report.numbers import decimals_for, is_number, number
from pipeline.report.runs import Contestant, Run


class Plot(NamedTuple):
    """The plot for one measure of the referee, and what it says in words."""

    name: str
    svg: Markup
    lines: list[tuple[int, str]]  # style and name of each contestant
    found: list[str]  # a sentence for each run that has a marked point; empty when none has


FALL = 0.05


def turning_point(score: Sequence[float], referee: Sequence[float]) -> int | None:
    """The exam at which the referee is best, if the score rises beyond it while the referee falls; else None.

    A fall is a loss of more than a twentieth of what the referee had gained: less is the noise of any exam.
    """
    best = max(range(len(referee)), key=referee.__getitem__)
    limit = referee[best] - FALL * (referee[best] - referee[0])
    fallen = [i for i in range(best + 1, len(score)) if score[i] > score[best] and referee[i] < limit]
    return best if fallen else None


def over_optimization(of: Sequence[Contestant], noise: dict[str, float] | None = None) -> list[Plot]:
    """A plot for each measure of the referee.

    Args:
        of: one or several contestants; every run is a line of its own, seeds in the same style.
        noise: measure -> half the 95% interval of a change between two exams, where it is known.
    """
    runs = [(i, c.label, run) for i, c in enumerate(of) for run in c.runs if len(run.exams) > 1]
    measures = dict.fromkeys(name for *_, run in runs for name in run.exams[0].get("referee") or {})
    plots = []
    for index, name in enumerate(measures):
        paths, lines, found = [], {}, []
        for i, label, run in runs:
            path = path_of(run, name, i)
            if path is None:
                continue
            paths.append(path)
            lines[i] = label
            if path.mark is not None:
                text = sentence(path, name, (noise or {}).get(name))
                found.append(f"{label}, seed {run.seed}: {text}" if len(runs) > 1 else text)
        if paths:
            svg = charts.over_optimization(paths, f"over-optimization {index}")
            plots.append(Plot(name, svg, list(lines.items()), found))
    return plots


def path_of(run: Run, measure: str, style: int) -> charts.Path | None:
    rows = [(exam.get("kl"), exam.get("score"), (exam.get("referee") or {}).get(measure)) for exam in run.exams]
    rows = [row for row in rows if all(is_number(value) for value in row)]
    if len(rows) < 2:
        return None
    kl, score, referee = (list(column) for column in zip(*rows, strict=True))
    sign = -1 if measure in run.lower_is_better else 1
    return charts.Path(style, kl, score, referee, turning_point(score, [sign * x for x in referee]))


def sentence(path: charts.Path, name: str, noise: float | None) -> str:
    """What happened after the marked exam, up to the exam with the worst referee among those with a higher score."""
    best = path.mark
    worst = max(
        (i for i in range(best + 1, len(path.score)) if path.score[i] > path.score[best]),
        key=lambda i: abs(path.referee[i] - path.referee[best]),  # at `best` it is at its best, so away is worse
    )
    scores, measures = ([x[best], x[worst]] for x in (path.score, path.referee))
    s, m = decimals_for(*scores), decimals_for(*measures)
    text = (
        f"After the exam at KL {number(path.kl[best])} the training score still rose ({number(scores[0], s)} → "
        f"{number(scores[1], s)}) while {name} got worse ({number(measures[0], m)} → {number(measures[1], m)})"
    )
    if noise is not None:
        small = abs(measures[0] - measures[1]) <= noise
        text += f"; a change of {number(noise, m)} or less may be chance, {'as here' if small else 'this is more'}"
    return text + "."


def few_exams(of: Sequence[Contestant]) -> bool:
    """True when no run was examined in between: two points can show no turn."""
    return all(len(run.exams) <= 2 for contestant in of for run in contestant.runs)
