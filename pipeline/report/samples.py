"""Held-out prompts with both completions: what the page shows of them, and what can be counted over them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import correlation, mean, stdev
from typing import Any

from markupsafe import escape

from pipeline.report import charts
from pipeline.report.numbers import arrow, is_number, number
from pipeline.safety import shapes
from pipeline.safety.reading import read_lines

SAMPLES = "samples.jsonl"
MAX_SAMPLES = 2000
AT_ONCE = 200  # of them stand on the page itself; the others wait in a template until the script shows them
MAX_TEXT = 3000  # characters of one prompt or completion
MAX_BYTES = 1_400_000  # of the texts that stand on the page itself; when they are more, the longest are cut shorter
MORE_BYTES = 6_000_000  # of all texts; when they are more, fewer samples than MAX_SAMPLES are shown
MAX_DOTS = 400  # completions in one scatter plot

Rows = Sequence[dict[str, Any]]


def read_samples(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of samples.jsonl, each with its scores as dicts."""
    path = run_dir / SAMPLES
    return [
        row | {which: row.get(which) or {} for which in ("scores_before", "scores_after")}
        for row in (read_lines(path, shapes.SAMPLE) if path.is_file() else [])
    ]


def show_samples(rows: Rows) -> dict[str, Any]:
    """The first rows as the template shows them, and the names that they can be sorted by."""
    names, unit = score_names(rows), length_unit(rows)
    texts = [[plain(row.get(key)) for key in ("prompt", "before", "after")] for row in rows[:MAX_SAMPLES]]
    limit = text_limit([text for row in texts[:AT_ONCE] for text in row])
    texts = texts[: fitting(texts, limit)]
    shown, samples = rows[: len(texts)], []
    for row, (prompt, before, after) in zip(shown, texts, strict=True):
        sides = [
            {name: row[f"scores_{which}"].get(name) for name in names} | {unit: length(row, which)}
            for which in ("before", "after")
        ]
        samples.append(
            {
                "prompt": cut(prompt, limit),
                "before": cut(before, limit),
                "after": cut(after, limit),
                "turns_before": turns(row.get("turns_before"), limit),
                "turns_after": turns(row.get("turns_after"), limit),
                "scores_before": [(name, value, "") for name, value in sides[0].items()],
                "scores_after": [(n, value, arrow(sides[0][n], value)) for n, value in sides[1].items()],
                "sort_before": [value if is_number(value) else None for value in sides[0].values()],
                "sort_after": [value if is_number(value) else None for value in sides[1].values()],
            }
        )
    names = list(dict.fromkeys([*names, unit]))
    return {"rows": samples, "names": names, "total": len(rows), "at_once": AT_ONCE}


def turns(found: list[dict[str, Any]] | None, limit: int) -> list[dict[str, Any]]:
    """A game turn by turn, of which at most `limit` characters are shown; none for a completion of one turn."""
    shown = []
    for turn in found or []:
        said = cut(turn["said"].strip(), limit)
        calls, answers = ([cut(text, limit) for text in turn[key]] for key in ("calls", "answers"))
        shown.append({"said": said, "calls": calls, "answers": answers, "paid": turn["paid"]})
        limit = max(0, limit - sum(map(len, (said, *calls, *answers))))
    return shown


def score_names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in [*row["scores_before"], *row["scores_after"]]))


def length_unit(rows: Rows) -> str:
    """Lengths are in tokens where the rows say so, else in words."""
    return "tokens" if rows and all("length_before" in row and "length_after" in row for row in rows) else "words"


def length(row: dict[str, Any], which: str) -> int:
    """Of the completion `before` or `after`, in the unit that `length_unit` names."""
    tokens = row.get(f"length_{which}")
    return tokens if is_number(tokens) else len(plain(row.get(which)).split())


def plain(value: Any) -> str:
    """A prompt or completion as plain text; conversations one message a paragraph, each headed by its role."""
    if isinstance(value, list):
        value = "\n\n".join(
            f"{m.get('role', '?')}: {m.get('content', '')}" if isinstance(m, dict) else str(m) for m in value
        )
    return "" if value is None else str(value)


def cut(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit} more characters)"


def text_limit(texts: Sequence[str]) -> int:
    """At most so many characters of a text are shown, so that all of them together, escaped, fit into the page."""
    limit = MAX_TEXT
    while limit > 100 and sum(page_bytes(text[:limit]) for text in texts) > MAX_BYTES:
        limit = limit * 3 // 4
    return limit


def fitting(texts: Sequence[Sequence[str]], limit: int) -> int:
    """How many of the rows of texts fit into the page, each text cut at `limit` characters; never under AT_ONCE."""
    room = MORE_BYTES
    for i, row in enumerate(texts):
        room -= sum(page_bytes(text[:limit]) for text in row)
        if room < 0 and i >= AT_ONCE:
            return i
    return len(texts)


def page_bytes(text: str) -> int:
    """What a text takes on the page."""
    return len(escape(text).encode("utf-8", "replace"))


def changes(rows: Rows) -> dict[str, tuple[float, float]]:
    """name -> mean change of the score from before to after, and half the width of its 95% interval.

    The two completions answer the same prompt, so the differences d are what varies: mean(d) ± 1.96 s(d) / √n, the
    normal approximation, with s the sample standard deviation.
    """
    found = {}
    for name in score_names(rows):
        pairs = [(row["scores_before"].get(name), row["scores_after"].get(name)) for row in rows]
        differences = [after - before for before, after in pairs if is_number(before) and is_number(after)]
        if len(differences) > 1:
            found[name] = mean(differences), 1.96 * stdev(differences) / math.sqrt(len(differences))
    return found


def score_charts(rows: Rows) -> list[dict[str, Any]]:
    """For each score the histogram of before and after, and length against score with Pearson's correlation."""
    found, unit = [], length_unit(rows)
    for index, name in enumerate(score_names(rows)):
        sides = {
            which: [
                (float(length(row, which)), float(row[f"scores_{which}"][name]))
                for row in rows
                if is_number(row[f"scores_{which}"].get(name))
            ]
            for which in ("before", "after")
        }
        before, after = sides["before"], sides["after"]
        if not before or not after:
            continue
        scores = {which: [y for _, y in points] for which, points in sides.items()}
        correlations = {which: number(pearson(points), 2) for which, points in sides.items()}
        means = {which: number(mean(values)) for which, values in scores.items()}
        found.append(
            {
                "name": name,
                "histogram": charts.histogram(scores["before"], scores["after"], f"histogram {index}"),
                "means": means,
                "scatter": charts.scatter(sparse(before), sparse(after), unit, f"scatter {index}"),
                "pearson": correlations,
                "count": len(after),
            }
        )
    return found


def pearson(points: Iterable[charts.Point]) -> float | None:
    """Pearson's correlation of x and y; None where one of them never changes."""
    xs, ys = zip(*points, strict=True)
    return correlation(xs, ys) if len(set(xs)) > 1 and len(set(ys)) > 1 else None


def sparse(points: Sequence[charts.Point], limit: int = MAX_DOTS) -> list[charts.Point]:
    """At most `limit` points, evenly picked."""
    return list(points[:: math.ceil(len(points) / limit)])
