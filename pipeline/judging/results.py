"""What the verdicts of all judges come to: preference pairs for `make reward`, and a summary."""

import fcntl
import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.exam.statistics import wilson
from pipeline.judging.agreement import cohen_kappa, krippendorff_alpha, raw_agreement
from pipeline.judging.pairs import Pairs, Text
from pipeline.judging.verdicts import read_verdicts, winner
from pipeline.runs.folder import SUMMARY, write_aside
from rewards import text_of

VERDICTS, PREFERENCES = "verdicts", "preferences.jsonl"
TIE = "tie"


def collect(folder: Path, pairs: Pairs) -> dict[str, Any]:
    """Writes `preferences.jsonl` and `summary.json` from the verdicts of every judge; returns the summary."""
    (folder / VERDICTS).mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # another judge may stop at the same moment
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = sorted((folder / VERDICTS).glob("*.jsonl"))
        judges = {path.stem: read_verdicts(path, pairs)[0] for path in files}
        judges = {judge: rows for judge, rows in judges.items() if rows}
        preferred, empty = preferences(pairs, judges)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in preferred)
        write_aside(folder / PREFERENCES, text)
        summary = summarize(pairs, judges) | {"preferences": len(preferred), "left_out_as_empty": empty}
        write_aside(folder / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def preferences(pairs: Pairs, judges: dict[str, list[dict]]) -> tuple[list[dict[str, Any]], int]:
    """Rows of prompt, chosen and rejected, one for each verdict that is no tie, in the order of the pairs.

    Also how many were left out because one of their texts is empty, on which a reward model cannot be trained.

    Judges who disagree give rows that pull in opposite directions, which is what they know between them.
    """
    found, empty = [], 0
    for number, pair in enumerate(pairs.pairs):
        for judge, rows in judges.items():
            won = winner(rows[number]) if number < len(rows) else None
            if won is None:
                continue
            chosen, rejected = (pair.first, pair.second) if won == pairs.columns[0] else (pair.second, pair.first)
            if not all(text_of(text).strip() for text in (pair.prompt, chosen, rejected)):
                empty += 1
                continue
            chosen, rejected = (_in_the_form_of(pair.prompt, text) for text in (chosen, rejected))
            found.append({"prompt": pair.prompt, "chosen": chosen, "rejected": rejected, "judge": judge})
    return found, empty


def _in_the_form_of(prompt: Text, completion: Text) -> Text:
    """A completion as messages when the prompt is, as text when it is: a preference row wants one form."""
    if isinstance(prompt, list) and isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return text_of(completion) if isinstance(prompt, str) else completion


def summarize(pairs: Pairs, judges: dict[str, list[dict]]) -> dict[str, Any]:
    """Win rates of the second column against the first, by judge and by majority, and how far judges agree.

    The majority's verdict on a pair is the column with more votes, or a tie. It is one verdict a pair, because several
    judges of one pair are not independent and would make the interval look narrower than it is.
    """
    verdicts = {judge: [winner(row) or TIE for row in rows] for judge, rows in judges.items()}
    units = [[rows[number] for rows in verdicts.values() if number < len(rows)] for number in range(len(pairs.pairs))]
    summary: dict[str, Any] = {
        "win_rate_of": pairs.columns[1],
        "against": pairs.columns[0],
        "pairs": len(pairs.pairs),
        "identical_left_out": pairs.identical,
        "judges": {judge: win_rates(verdicts[judge], pairs.columns) | habits(rows) for judge, rows in judges.items()},
    }
    if len(judges) > 1:
        summary["majority"] = win_rates([majority(unit) for unit in units if unit], pairs.columns)
        agreement = {
            "pairs": sum(len(unit) >= 2 for unit in units),
            "raw": raw_agreement(units),
            "krippendorff_alpha": krippendorff_alpha(units),
        }
        if len(judges) == 2:
            agreement["cohen_kappa"] = cohen_kappa(unit for unit in units if len(unit) == 2)
        summary["agreement"] = agreement
    return summary


def majority(unit: list[str]) -> str:
    """The column that more judges prefer than the other; a tie where there is none."""
    (most, votes), *rest = Counter(verdict for verdict in unit if verdict != TIE).most_common() or [(TIE, 0)]
    return TIE if rest and rest[0][1] == votes else most


def win_rates(verdicts: list[str], columns: tuple[str, str]) -> dict[str, Any]:
    """Wins, losses and ties of the second column, and its win rate with a 95% interval, ties as half and left out."""
    losses, wins, ties = (verdicts.count(name) for name in (*columns, TIE))

    def rate(won: float, n: int) -> dict[str, float] | None:
        if not n:
            return None
        low, high = wilson(won, n)
        return {"rate": won / n, "low": low, "high": high, "n": n}

    return {
        "judged": len(verdicts),
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "ties_as_half": rate(wins + ties / 2, len(verdicts)),
        "ties_left_out": rate(wins, wins + losses),
    }


def habits(rows: list[dict]) -> dict[str, float | None]:
    """Share of choices that fell on the left, of which half is to be expected, and the median seconds of a verdict."""
    chosen = [row["verdict"] for row in rows if row["verdict"] != TIE]
    left = chosen.count("left") / len(chosen) if chosen else None
    return {"left": left, "seconds": median(row["seconds"] for row in rows)}


def table(summary: dict[str, Any]) -> str:
    """The summary as a few lines of text."""
    first, second = summary["against"], summary["win_rate_of"]
    figures = list(summary["judges"].items())
    if "majority" in summary:
        figures.append(("the majority", summary["majority"]))
    lines = [f"{second} against {first}, 95% intervals:"]
    for name, row in figures:
        counts = f"{row['wins']} won, {row['losses']} lost, {row['ties']} ties"
        half, without = _rate(row["ties_as_half"]), _rate(row["ties_left_out"])
        lines.append(f"  {name}: {counts}; win rate {half} with ties as half, {without} without ties")
    if agreement := summary.get("agreement"):
        names = {"raw": "agreement", "cohen_kappa": "Cohen's kappa", "krippendorff_alpha": "Krippendorff's alpha"}
        told = ", ".join(f"{names[key]} {_number(agreement[key])}" for key in names if key in agreement)
        lines.append(f"Judges on the {agreement['pairs']} pairs that more than one has judged: {told}")
    return "\n".join(lines)


def _rate(rate: dict[str, float] | None) -> str:
    return f"{rate['rate']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})" if rate else "no figure"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
