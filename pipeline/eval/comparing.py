"""Two candidates on the same prompts: differences, paired tests, win rates."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from trl import is_conversational

from pipeline.errors import UserError
from pipeline.exam.statistics import Interval, Measure, WinRate, difference, holm, interval, win_rate
from rewards import build_rewards, log_name_of
from rewards.asking import columns_of
from rewards.base import RESERVED

SIDES = ("completions_a", "completions_b")  # what a judge is asked about; no column can have the name
Judge = Callable[..., Sequence[float | None]]


def read_judges(specs: Iterable[Any], columns: Iterable[str] = ()) -> dict[str, Judge]:
    """Judges by name: `mymodule:function`, or `{name: mymodule:function, option: ...}`, imported as rewards are.

    Args:
        columns: what each of them will be given besides prompts and completions.

    Raises:
        UserError, RewardError: no function of the user's own, none there, or one that does not take the columns.
    """
    judges: dict[str, Judge] = {}
    for spec in specs:
        named = spec["name"] if isinstance(spec, dict) else spec
        if not callable(named) and ":" not in str(named):
            raise UserError(f"judges: {named!r} is not valid: name a function of your own, e.g. mymodule:prefer")
        [(function, _)] = build_rewards([spec])
        name = log_name_of(function)
        if name in judges:
            raise UserError(f"judges: two are called {name}; rename one of the functions")
        try:
            inspect.signature(function).bind(
                [], [], [], **dict.fromkeys(sorted(set(columns) - {*RESERVED, *SIDES}), [])
            )
        except TypeError as error:
            raise UserError(
                f"judge {name} does not take what it will be given ({error}); write it as "
                f"{name}(prompts, completions_a, completions_b, **columns)"
            ) from None
        judges[name] = function
    return judges


def figures(measures: dict[str, Measure | float], seed: int) -> dict[str, dict]:
    """Each figure as {value, low, high, prompts}; low and high are None where it has no interval."""
    found = {}
    for name, measure in measures.items():
        if isinstance(measure, Measure):
            ends = _ends(interval(measure, seed))
            found[name] = {"value": _plain(measure.value()), **ends, "prompts": int(measure.known.sum())}
        else:
            found[name] = {"value": _plain(measure), **_ends(None), "prompts": None}
    return found


def compare(evaluation, measures: dict[str, dict[str, dict[str, Measure | float]]]) -> list[dict]:
    """Every candidate against the reference, decoding by decoding and figure by figure.

    Args:
        evaluation: the stage's `Evaluation`, with all answers.
        measures: candidate -> decoding -> name -> measure.
    """
    found, reference = [], evaluation.reference
    seed = evaluation.args.seed
    for candidate in measures:
        if candidate == reference:
            continue
        for decoding, mine in measures[candidate].items():
            theirs = measures[reference][decoding]
            ours = [evaluation.answers[name][decoding].scored for name in (candidate, reference)]
            head = {"candidate": candidate, "against": reference, "decoding": decoding}
            for name in mine:
                if name in theirs:
                    won = None
                    if name in evaluation.higher_wins and name in ours[0].scores:
                        won = win_rate(outcomes(*(side.scores[name] for side in ours), evaluation.higher_wins[name]))
                    found.append(head | _difference(name, mine[name], theirs[name], seed) | {"wins": _wins(won)})
            for name, judge in evaluation.judges.items():
                won = win_rate(ask_judge(judge, name, evaluation.rows, *(side.completions for side in ours)))
                nothing = {"measure": name, "difference": None, **_ends(None), "prompts": len(evaluation.rows)}
                found.append(head | nothing | {"p": won.p if won else None, "wins": _wins(won)})
    for comparison, adjusted in zip(found, holm([comparison["p"] for comparison in found]), strict=True):
        comparison["p_holm"] = adjusted
    return found


def _difference(name: str, mine: Measure | float, theirs: Measure | float, seed: int) -> dict:
    if not isinstance(mine, Measure):
        return {"measure": name, "difference": _plain(mine - theirs), **_ends(None), "prompts": None, "p": None}
    result = difference(mine, theirs, seed)
    ends = _ends(result.interval)
    return {
        "measure": name,
        "difference": _plain(result.value),
        **ends,
        "prompts": result.prompts,
        "p": None if result.p is None else _plain(result.p),
    }


def outcomes(
    ours: Sequence[float | None], theirs: Sequence[float | None], higher_wins: bool = True
) -> list[float | None]:
    """1 where our score is the better one, 0 where theirs is, 0.5 where they are equal, None where one is missing."""
    found: list[float | None] = []
    for mine, their in zip(ours, theirs, strict=True):
        if mine is None or their is None:
            found.append(None)
        else:
            found.append(0.5 if mine == their else float((mine > their) == higher_wins))
    return found


def ask_judge(
    judge: Judge, name: str, rows: Sequence[dict], ours: Sequence[str], theirs: Sequence[str]
) -> list[float | None]:
    """What the judge says, 1 = ours wins. It is asked twice, with the two sides exchanged, and the mean counts: one
    that prefers whatever comes first gives a tie.

    Raises:
        UserError: it fails, or does not give one number from 0 to 1, or None, for each pair.
    """
    prompts = [row["prompt"] for row in rows]
    columns = {key: values for key, values in columns_of(rows).items() if key not in SIDES}
    if is_conversational({"prompt": prompts[0]}):
        ours, theirs = ([[{"role": "assistant", "content": text}] for text in side] for side in (ours, theirs))
    try:
        first = judge(prompts, list(ours), list(theirs), **columns)
        second = judge(prompts, list(theirs), list(ours), **columns)
    except Exception as error:  # it is the user's own code
        raise UserError(f"judge {name} failed: {type(error).__name__}: {error}") from error
    first, second = (_verdicts(given, name, len(rows)) for given in (first, second))
    return [None if a is None or b is None else (a + 1 - b) / 2 for a, b in zip(first, second, strict=True)]


def _verdicts(given: Any, name: str, count: int) -> list[float | None]:
    wants = "return a list with 1 (the first wins), 0, 0.5 (a tie) or None for each pair"
    if not hasattr(given, "__len__") or isinstance(given, str | dict) or len(given) != count:
        raise UserError(f"judge {name} returned {given!r:.80} for {count} pairs; {wants}")
    for verdict in given:
        if verdict is not None and not (isinstance(verdict, int | float | np.number) and 0 <= verdict <= 1):
            raise UserError(f"judge {name} returned {verdict!r:.80} for a pair; {wants}")
    return [None if verdict is None else float(verdict) for verdict in given]


def _ends(ends: Interval | None) -> dict[str, float | None]:
    return {"low": ends.low, "high": ends.high} if ends else {"low": None, "high": None}


def _wins(won: WinRate | None) -> dict | None:
    if won is None:
        return None
    return {"rate": won.rate, **_ends(won.interval), "wins": won.wins, "ties": won.ties, "losses": won.losses}


def _plain(value: float) -> float | None:
    """NaN as None, which JSON has."""
    return None if np.isnan(value) else float(value)
