"""Two candidates on the same prompts: differences, paired tests, win rates."""

from collections.abc import Sequence

import numpy as np

from pipeline.eval.judges import both_orders, means, order_of
from pipeline.exam.statistics import Interval, Measure, WinRate, difference, holm, interval, mean, win_rate


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
    """Every candidate against the reference, and every policy against the reference made as sharp as it is, decoding
    by decoding and figure by figure. Judges are asked about the candidates and the reference alone.

    Args:
        evaluation: the stage's `Evaluation`, with all answers.
        measures: candidate -> decoding -> name -> measure.
    """
    found, reference = [], evaluation.reference
    seed = evaluation.args.seed
    controls = {policy: control.name for policy, control in evaluation.controls.items() if control.name in measures}
    against = [(candidate, reference) for candidate in measures if candidate != reference]
    for candidate, other in [*against, *controls.items()]:
        for decoding, mine in measures[candidate].items():
            theirs = measures[other].get(decoding)
            if theirs is None:  # of a control nobody has greedy answers
                continue
            ours = [evaluation.answers[name][decoding].scored for name in (candidate, other)]
            head = {"candidate": candidate, "against": other, "decoding": decoding}
            for name in mine:
                if name in theirs:
                    won = None
                    if name in evaluation.higher_wins and name in ours[0].scores:
                        won = win_rate(outcomes(*(side.scores[name] for side in ours), evaluation.higher_wins[name]))
                    found.append(head | _difference(name, mine[name], theirs[name], seed) | {"wins": _wins(won)})
            asked = candidate in evaluation.candidates and other in evaluation.candidates
            for name, judge in evaluation.judges.items() if asked else ():
                pairs = both_orders(judge, name, evaluation.rows, *(side.completions for side in ours))
                won = win_rate(means(pairs))
                nothing = {"measure": name, "difference": None, **_ends(None), "prompts": len(evaluation.rows)}
                order = order_of(pairs)
                order |= _ends(interval(mean(order.pop("each")), seed))
                found.append(head | nothing | {"p": won.p if won else None, "wins": _wins(won), "order": order})
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


def _ends(ends: Interval | None) -> dict[str, float | None]:
    return {"low": ends.low, "high": ends.high} if ends else {"low": None, "high": None}


def _wins(won: WinRate | None) -> dict | None:
    if won is None:
        return None
    return {"rate": won.rate, **_ends(won.interval), "wins": won.wins, "ties": won.ties, "losses": won.losses}


def _plain(value: float) -> float | None:
    """NaN as None, which JSON has."""
    return None if np.isnan(value) else float(value)
