"""Best-of-n, the baseline without training: of n samples of the start the rewards choose one for each prompt.

    E[score of the chosen] = Σ_i C(i-1, n-1) / C(N, n) · s_(i),   s_(1) ≤ … ≤ s_(N)

is the mean over all subsets of n of the N samples that there are, so it is unbiased for every n up to N; and so is the
mean of any other measure of the answer that the score chooses, such as the referee's (Nakano et al. 2021, arXiv
2112.09332; Hilton and Gao 2022, "Measuring Goodhart's law"). Equal scores share their chances.

    KL(best-of-n ‖ start) ≤ log n - (n-1)/n   nats a completion

is an upper bound: the equality that was long quoted holds where answers are never scored alike, or said twice, and
elsewhere the KL is smaller (Beirami et al. 2024, arXiv 2401.01879).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.eval.comparing import figures
from pipeline.exam.evaluation import ScoredAnswers
from pipeline.exam.statistics import Measure, mean

SAMPLES = "best_of.jsonl"


class BestOf(NamedTuple):
    """N samples of each of P prompts by one candidate."""

    candidate: str
    samples: int  # N
    answers: ScoredAnswers  # P·N of them, those of a prompt together
    rewards: Sequence[str]  # names of the scores that choose; the other scores are the referee's
    weights: Mapping[str, float]


def kl_bound(n: int) -> float:
    """The most that best-of-n can be away from what it samples from, in nats: log n - (n-1)/n."""
    return math.log(n) - (n - 1) / n


def total(scores: Mapping[str, Sequence[float | None]], weights: Mapping[str, float]) -> list[float | None]:
    """Σ weight · score of each answer, as PPO adds them up; a missing score adds nothing, None: all are missing."""
    columns = [[None if s is None else weights[name] * s for s in scores[name]] for name in weights]
    known = [[part for part in parts if part is not None] for parts in zip(*columns, strict=True)]
    return [math.fsum(parts) if parts else None for parts in known]


def chances(scores: Sequence[float], n: int) -> np.ndarray:
    """How likely each of N samples (N,) is the best of n that are drawn from them without replacement.

    Args: scores: (N,), NaN for one that is chosen only where no other is there. n: 1 to N.
    """
    ranks = np.where(np.isnan(scores), -math.inf, scores)
    count = len(ranks)
    by_rank = np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])
    _, group, sizes = np.unique(ranks, return_inverse=True, return_counts=True)
    shares = np.bincount(np.sort(group), weights=by_rank) / sizes
    return shares[group]


def chosen(values: np.ndarray, by: np.ndarray) -> Measure:
    """The mean over prompts of what the chosen answer has.

    Args:
        values: (P, N) of any measure, NaN where it is missing.
        by: (P, N) chances to be chosen.
    """
    known = ~np.isnan(values)
    there = np.where(known, by, 0).sum(axis=1)
    sums = (np.where(known, by, 0) * np.nan_to_num(values)).sum(axis=1)
    return mean([top / bottom if bottom > 0 else None for top, bottom in zip(sums, there, strict=True)])


def worth(curve: Sequence[float], value: float, higher_wins: bool = True) -> float:
    """How many samples `value` is worth: the first n at which best-of-n is as good, between whole n by log n.

    Args: curve: the figure of best-of-1, best-of-2, ….

    Returns:
        0: one sample is better already; infinity: none of the curve is as good.
    """
    sign = 1 if higher_wins else -1
    gained = [sign * (point - value) for point in curve]
    if gained[0] > 0:
        return 0.0
    for n, now in enumerate(gained, start=1):
        if now >= 0:
            before = gained[n - 2]
            part = before / (before - now) if n > 1 else 0.0
            return math.exp((1 - part) * math.log(max(n - 1, 1)) + part * math.log(n))
    return math.inf


def summary(best: BestOf, others: Mapping[str, ScoredAnswers], higher_wins: Mapping[str, bool], seed: int) -> dict:
    """What `summary.json` says of it.

    Args:
        others: candidate -> its sampled answers, one a prompt.
        higher_wins: score -> whether the higher one is the better one; others are worth no number of samples.

    Returns:
        `candidate`, `samples`, `weights`;
        `curve`: at n = 1, 2, 4, … N, as the rows of an exam: `kl` (the bound), `score`, `rewards`, `referee`,
        `length`, `finished`;
        `worth`: candidate -> `score` and the measures of its `referee`: `value` with its interval, and `samples`, the
        n that is as good (0: one is better; None: more than N).
    """
    columns = _columns(best)
    tables = {name: _table(column, best.samples) for name, column in columns.items()}
    by = [np.array([chances(row, n) for row in tables["score"]]) for n in range(1, best.samples + 1)]
    curves = {name: [chosen(table, chance) for chance in by] for name, table in tables.items()}
    at = sorted({2**i for i in range(best.samples.bit_length()) if 2**i <= best.samples} | {best.samples})
    points = [
        {"n": n, "kl": kl_bound(n)} | _nested(figures({k: c[n - 1] for k, c in curves.items()}, seed)) for n in at
    ]
    found = {}
    for name, answers in others.items():
        mine = {"score": total(answers.scores, best.weights)} | _measures("referee", best, answers)
        wins = {"score": True} | {f"referee/{key}": wins for key, wins in higher_wins.items()}
        each = figures({key: mean(column) for key, column in mine.items() if key in wins}, seed)
        for key, figure in each.items():
            line = [measure.value() for measure in curves[key]]
            n = math.inf if figure["value"] is None else worth(line, figure["value"], wins[key])
            each[key] = figure | {"samples": None if math.isinf(n) else n}
        found[name] = {key: it for key, it in _nested(each).items() if key != "rewards"}
    own = {"candidate": best.candidate, "samples": best.samples, "weights": dict(best.weights)}
    return own | {"curve": points, "worth": found}


def write_samples(best: BestOf, prompts: Sequence[Any], path: Path) -> None:
    """Every sample with its scores, a line a prompt."""
    answers, count = best.answers, best.samples
    sums = total(answers.scores, best.weights)
    with path.open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts):
            said = [
                {
                    "completion": answers.completions[k],
                    "score": sums[k],
                    "scores": {name: column[k] for name, column in answers.scores.items()},
                }
                for k in range(i * count, (i + 1) * count)
            ]
            file.write(json.dumps({"prompt": prompt, "samples": said}, ensure_ascii=False) + "\n")


def repeated(rows: Sequence[dict], count: int) -> list[dict]:
    """Each row `count` times, one after the other."""
    return [row for row in rows for _ in range(count)]


def _columns(best: BestOf) -> dict[str, Sequence[float | None]]:
    """Measure -> its value for every sample, by the names of `_nested`."""
    answers = best.answers
    length, finished = ([float(x) for x in column] for column in (answers.lengths, answers.finished))
    scores = {"score": total(answers.scores, best.weights)}
    measures = _measures("rewards", best, answers) | _measures("referee", best, answers)
    return scores | measures | {"length": length, "finished": finished}


def _measures(kind: str, best: BestOf, answers: ScoredAnswers) -> dict[str, Sequence[float | None]]:
    wanted: Callable = (lambda name: name in best.rewards) if kind == "rewards" else (lambda n: n not in best.rewards)
    return {f"{kind}/{name}": column for name, column in answers.scores.items() if wanted(name)}


def _table(column: Sequence[float | None], samples: int) -> np.ndarray:
    return np.array([math.nan if x is None else x for x in column], dtype=float).reshape(-1, samples)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`rewards/bleu` becomes `bleu` in `rewards`; both parts are there where nothing is in them."""
    found: dict[str, Any] = {"rewards": {}, "referee": {}}
    for name, value in flat.items():
        kind, _, rest = name.partition("/")
        if rest and kind in ("rewards", "referee"):
            found[kind][rest] = value
        else:
            found[name] = value
    return found
