"""What the figures of a policy's run allow to be said: which change is more than chance, and what looks like cheating.

Nothing here is a sentence; answers.py says it.
"""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

from pipeline.report import exams
from pipeline.report.numbers import is_number
from pipeline.report.runs import Run
from pipeline.report.samples import Rows, length, pearson
from pipeline.watching.watch import REPEATED_MORE

# Rules of thumb for what a reader should look at; no test of significance.
LONGER = 1.5  # times the tokens of a completion, or a part of them
LENGTH_PAYS, LENGTH_PAYS_MORE = 0.3, 0.2  # correlation of length and score after training, and its rise
CUT = 0.9  # share of completions that end by themselves, below which the limit is felt
MOVED = 0.1  # nats a completion: less is next to no training
POWER = ((1.96 + 0.84) / 1.96) ** 2  # prompts for a change to be shown four times in five, over those for once in two
WATCHED = {  # watchers whose warning may mean that a reward was pleased instead of earned
    "kl": "that it ran away from its start",
    "entropy": "that it said nearly the same each time",
    "over-optimization": "that the referee fell while the score rose",
    "repetition": "that completions repeat themselves",
}


class Change(NamedTuple):
    """One measure on the held-out prompts."""

    name: str
    before: float
    after: float
    half: float | None  # half the width of the 95% interval of the change; None: it is not known
    sign: int  # 1: higher is better; -1: lower is
    prompts: int  # that the interval is of

    @property
    def gain(self) -> float:
        """The change for the better."""
        return self.sign * (self.after - self.before)

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.half is not None and abs(self.gain) > self.half

    @property
    def verdict(self) -> int | None:
        """1: better, -1: worse, 0: cannot be told apart from chance; None: there is no interval to tell."""
        return None if self.half is None else self.sure * (1 if self.gain > 0 else -1)

    def prompts_needed(self) -> int | None:
        """Held-out prompts that would show a true change as large as this one four times in five (the half width
        falls with 1/√n); rounded up to two digits. None: no change to be shown."""
        if self.half is None or not self.gain:
            return None
        needed = POWER * self.prompts * (self.half / self.gain) ** 2
        unit = 10 ** max(0, math.floor(math.log10(needed)) - 1) if needed >= 1 else 1
        return math.ceil(needed / unit) * unit


class Sign(NamedTuple):
    """Something that a policy does which pleases its rewards rather than earns them."""

    strong: bool
    text: str
    anchor: str  # where on the page it can be seen


def changes_of(
    run: Run, names: Sequence[str], intervals: dict[str, tuple[float, float]], prompts: int
) -> list[Change]:
    """The measures among `names` that are known before and after."""
    before, after = run.summary.get("before") or {}, run.summary.get("after") or {}
    found = []
    for name in names:
        old, new = before.get(name), after.get(name)
        if is_number(old) and is_number(new):
            half = intervals[name][1] if name in intervals else None
            found.append(Change(name, old, new, half, -1 if name in run.lower_is_better else 1, prompts))
    return found


def trained_on(run: Run) -> list[str]:
    """Names of the rewards; the referee's measures are in `tables.referees`."""
    return [name for exam in run.exams[:1] for name in exam.get("rewards") or {}]


def sides(rows: Rows, change: Change) -> tuple[int, int, int] | None:
    """On how many prompts a measure got better, worse, stayed; None where no sample has it."""
    pairs = [(row["scores_before"].get(change.name), row["scores_after"].get(change.name)) for row in rows]
    gains = [change.sign * (new - old) for old, new in pairs if is_number(old) and is_number(new)]
    if not gains:
        return None
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return better, worse, len(gains) - better - worse


def score_rose(run: Run) -> bool:
    """Whether the score that it was trained on was higher at the last exam than at the first."""
    scores = [exam.get("score") for exam in run.exams]
    return len(scores) > 1 and is_number(scores[0]) and is_number(scores[-1]) and scores[-1] > scores[0]


def turns(run: Run, referee: Sequence[Change]) -> list[tuple[Change, Any, bool]]:
    """The measures of the referee that fell while the score still rose: (measure, path by KL, more than chance)."""
    found = []
    for change in referee:
        path = exams.path_of(run, change.name, 0)
        if path is None or path.mark is None:
            continue
        later = [
            path.referee[i] for i in range(path.mark + 1, len(path.score)) if path.score[i] > path.score[path.mark]
        ]
        fall = max(abs(value - path.referee[path.mark]) for value in later)
        found.append((change, path, change.half is None or fall > change.half))
    return found


def lengths(run: Run) -> tuple[float, float] | None:
    """Mean tokens of a completion before and after."""
    pair = run.summary.get("length")
    if not isinstance(pair, dict):
        pair = {which: (run.summary.get(which) or {}).get("length") for which in ("before", "after")}
    old, new = pair.get("before"), pair.get("after")
    return (old, new) if is_number(old) and is_number(new) else None


def repetition(run: Run) -> tuple[float, float] | None:
    """Share of trigrams that stood earlier in the same completion: in the first log, mean of the last tenth."""
    found = [row["repetition"] for row in run.rows if is_number(row.get("repetition"))]
    return (found[0], mean(found[-max(1, len(found) // 10) :])) if len(found) > 1 else None


def length_pays(rows: Rows, name: str) -> tuple[float, float] | None:
    """Correlation of length and a score, before and after, where training has raised it to something worth a look."""
    found = []
    for which in ("before", "after"):
        scores = [(length(row, which), row[f"scores_{which}"].get(name)) for row in rows]
        points = [(float(x), float(y)) for x, y in scores if is_number(y)]
        found.append(pearson(points) if len(points) > 2 else None)
    before, after = found
    if before is None or after is None or after < LENGTH_PAYS or after - before < LENGTH_PAYS_MORE:
        return None
    return before, after


def signs(run: Run, rows: Rows, referee: Sequence[Change], warnings: Sequence[dict[str, Any]]) -> list[Sign]:
    """What looks like cheating, the strongest first."""
    found = []
    for change, path, beyond in turns(run, referee):
        if path.mark == 0 and change.verdict is not None:
            continue  # it never got better: said below
        chance = "" if beyond else ", though by no more than chance may give"
        text = f"From its best exam {change.name} fell while the score still rose{chance}"
        found.append(Sign(beyond, text, "over"))
    for change in referee:
        if change.verdict == -1 and score_rose(run):
            text = f"The score that it was trained on is higher, but {change.name} is worse than before"
            found.append(Sign(True, text, "scores"))
    for warning in warnings:
        if warning["watcher"] in WATCHED:
            text = f"A watcher warned at step {warning['step']} {WATCHED[warning['watcher']]}"
            found.append(Sign(False, text, "warnings"))
    if (tokens := lengths(run)) and tokens[0] and not 1 / LONGER < tokens[1] / tokens[0] < LONGER:
        way = "longer" if tokens[1] > tokens[0] else "shorter"
        found.append(Sign(False, f"Its completions got much {way}", "scores"))
    for name in trained_on(run):
        if pays := length_pays(rows, name):
            text = f"Long completions now get more {name} (correlation {pays[0]:.2f} before, {pays[1]:.2f} after)"
            found.append(Sign(False, text.replace("-", "−"), "lengths"))
    repeats = repetition(run)
    if repeats and repeats[1] - repeats[0] >= REPEATED_MORE:
        found.append(Sign(False, f"It repeats itself: {repeats[0]:.0%} → {repeats[1]:.0%} of its trigrams", "stage-1"))
    return sorted(found, key=lambda sign: not sign.strong)
