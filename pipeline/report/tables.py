"""What changed, in figures and in sentences: before and after on held-out prompts, for one run and for several."""

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from pipeline.report.curves import all_points
from pipeline.report.numbers import arrow, decimals_for, duration, is_number, number, signed
from pipeline.report.runs import Contestant, Run, flatten

REFEREE = ("gold",)  # what a referee is called when no exam names it
TEXT = ("length", "tokens", "finished")  # figures about the text, neither reward nor referee


def union(*mappings: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def referees(run: Run) -> list[str]:
    """The names of what no stage trained on."""
    return [name for exam in run.exams[:1] for name in exam.get("referee") or {}] or list(REFEREE)


def figures(summary: dict[str, Any], referee: Sequence[str] = REFEREE) -> dict[str, tuple[Any, Any]]:
    """name -> before and after, the referee first. Single pairs such as `heldout_loss` count as well."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    rows = {name: (before.get(name), after.get(name)) for name in union(before, after)}
    for name, pair in summary.items():
        if isinstance(pair, dict) and set(pair) == {"before", "after"} and not isinstance(pair["before"], dict):
            rows.setdefault(name, (pair["before"], pair["after"]))
    return {name: rows[name] for name in sorted(rows, key=lambda name: name not in referee)}


def before_after(
    summary: dict[str, Any],
    intervals: dict[str, tuple[float, float]] | None = None,
    referee: Sequence[str] = REFEREE,
) -> list[dict[str, Any]]:
    """Rows of the table: each mean on the held-out prompts before and after, the referee first.

    Args:
        intervals: name -> mean change and half the width of its 95% interval (see samples.changes).
    """
    greedy = summary.get("greedy") or {}
    table = []
    for name, (old, new) in figures(summary, referee).items():
        both = is_number(old) and is_number(new)
        change = new - old if both else None
        decimals = decimals_for(old, new)
        middle, half = (intervals or {}).get(name) or (None, None)
        pair = [(greedy.get(which) or {}).get(name) for which in ("before", "after")]
        table.append(
            {
                "name": name,
                "note": "referee, never trained on" if name in referee else "tokens" if name == "length" else "",
                "before": number(old, decimals),
                "after": number(new, decimals),
                "change": signed(change, decimals),
                "interval": f"{signed(middle - half, decimals)} to {signed(middle + half, decimals)}" if half else "",
                "sure": half is not None and abs(middle) > half,
                "greedy": " → ".join(number(x, decimals) for x in pair) if any(map(is_number, pair)) else "",
                "arrow": arrow(old, new),
            }
        )
    return table


def in_words(run: Run, table: Sequence[dict[str, Any]]) -> list[str]:
    """What changed, for those who read one paragraph only."""
    referee, found = referees(run), []
    if "algorithm" not in run.summary or not table:
        return found
    moves = {row["name"]: {"▲": "rose", "▼": "fell"}.get(row["arrow"], "stayed") for row in table}
    rows = {row["name"]: row for row in table}
    for name in [name for name in referee if name in rows]:
        row = rows[name]
        lower = ", lower is better" if name in run.lower_is_better else ""
        text = f"{name}, the referee that no training saw{lower}, {moves[name]} from {row['before']} to {row['after']}"
        if row["interval"]:
            text += ": more than chance would give" if row["sure"] else ": a change that may be chance"
        found.append(text + ".")
    trained = [name for exam in run.exams[:1] for name in exam.get("rewards") or {} if name in rows]
    for move in ("rose", "fell", "stayed"):
        names = [name + _doubt(rows[name]) for name in trained if moves[name] == move]
        if names:
            found.append(f"Trained on: {joined(names)} {'did not change' if move == 'stayed' else move}.")
    worse = [n for n in referee if moves.get(n) == ("rose" if n in run.lower_is_better else "fell")]
    if trained and all(moves[n] == "rose" for n in trained) and worse:
        found.append(
            "The rewards rose and the referee got worse: the policy may have learned to please its rewards only."
        )
    if "length" in rows:
        found.append(f"A completion has {rows['length']['before']} → {rows['length']['after']} tokens.")
    return found


def tiles(run: Run, table: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The few figures at the top of the page: (what, figure, unit or remark)."""
    summary = run.summary
    shown = [*referees(run), "length", "heldout_loss"]
    found = [
        {"what": row["name"], "figure": f"{row['before']} → {row['after']}", "note": row["note"]}
        for row in table
        if row["name"] in shown
    ]
    if is_number(summary.get("kl")):
        found.append({"what": "KL to the reference", "figure": number(summary["kl"]), "note": "nats a completion"})
    if is_number(summary.get("accuracy")):
        found.append({"what": "accuracy", "figure": number(summary["accuracy"]), "note": "held-out pairs"})
    if is_number(summary.get("episodes")):
        found.append({"what": "episodes", "figure": number(int(summary["episodes"])), "note": "completions sampled"})
    if is_number(summary.get("seconds")):
        found.append({"what": "time", "figure": duration(summary["seconds"]), "note": ""})
    return found


def single_numbers(run: Run) -> list[tuple[str, str]]:
    """What is no curve and stands in no table above: the rest of the summary, and metrics that were logged once."""
    flat = dict(flatten({k: v for k, v in run.summary.items() if k not in ("before", "after", "samples", "greedy")}))
    once = {n: p[0][1] for n, p in all_points(run.rows, curves=False).items() if n != "step" and len(p) == 1}
    return [
        (name, number(value)) for name, value in (once | flat).items() if isinstance(value, str) or is_number(value)
    ]


def comparison(of: Sequence[Contestant]) -> list[tuple[str, list[dict[str, str]]]]:
    """name -> for each contestant before → after, means over its seeds, and the lowest and highest after."""
    referee = union(*(referees(run) for contestant in of for run in contestant.runs))
    pairs = [[figures(run.summary, referee) for run in contestant.runs] for contestant in of]
    kls = [[{"KL, nats": (None, run.summary["kl"])} if "kl" in run.summary else {} for run in c.runs] for c in of]
    pairs = [[a | b for a, b in zip(x, y, strict=True)] for x, y in zip(pairs, kls, strict=True)]
    return [
        (name, [_over_seeds([run.get(name, (None, None)) for run in runs]) for runs in pairs])
        for name in union(*(run for runs in pairs for run in runs))
    ]


def _over_seeds(pairs: Sequence[tuple[Any, Any]]) -> dict[str, str]:
    sides = [[value for value in side if is_number(value)] for side in zip(*pairs, strict=True)]
    decimals = decimals_for(*sides[0], *sides[1])
    before, after = (number(mean(side) if side else None, decimals) for side in sides)
    many = len(sides[1]) > 1
    seeds = f"{number(min(sides[1]), decimals)} to {number(max(sides[1]), decimals)}" if many else ""
    return {"before": before if sides[0] else "", "after": after, "seeds": seeds}


def _doubt(row: dict[str, Any]) -> str:
    return " (which may be chance)" if row["interval"] and not row["sure"] else ""


def joined(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
