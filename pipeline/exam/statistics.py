"""Statistics of an evaluation: confidence intervals, paired tests, win rates. The unit is the prompt.

A figure over prompts is a function of sums over prompts: a mean is Σ x / Σ 1, a perplexity exp(Σ -log p / Σ tokens),
corpus BLEU a function of summed n-gram counts. So one `Measure` serves all of them, and resampling prompts means
adding up other rows.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000  # of the bootstrap
PERMUTATIONS = 9999  # of a paired test; all 2^N of them where there are not more
_AT_ONCE = 4_000_000  # numbers held in memory while resampling


class Measure(NamedTuple):
    """A figure over N prompts: `of` the sums of `rows` over the prompts."""

    rows: np.ndarray  # (N, k); a prompt without a value has NaN in its row and is left out
    of: Callable[[np.ndarray], np.ndarray]  # sums (..., k) -> figures (...)

    @property
    def known(self) -> np.ndarray:
        """Which prompts have a value, (N,) of bool."""
        return ~np.isnan(self.rows).any(axis=1)

    def value(self) -> float:
        """The figure over all prompts that have a value; NaN where none has."""
        known = self.known
        return float(self.of(self.rows[known].sum(axis=0))) if known.any() else math.nan


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """A figure of one candidate less that of another, on the prompts where both have a value."""

    value: float
    interval: Interval | None
    p: float | None
    prompts: int


class WinRate(NamedTuple):
    """How often one side is better; a tie is half a win."""

    rate: float
    interval: Interval
    wins: int
    ties: int
    losses: int
    p: float  # of a sign test; ties are left out


def mean(values: Sequence[float | None]) -> Measure:
    """The mean of one number a prompt; None or NaN: no value."""
    return ratio(values, [1.0] * len(values))


def ratio(tops: Sequence[float | None], bottoms: Sequence[float]) -> Measure:
    """Σ tops / Σ bottoms over the prompts."""
    rows = np.array([[math.nan if top is None else top, bottom] for top, bottom in zip(tops, bottoms, strict=True)])
    return Measure(rows.astype(float).reshape(-1, 2), quotient)


def share(values: Sequence[float | None]) -> Measure:
    """The mean of zeros and ones; its interval is Wilson's: a bootstrap of ones alone would be sure of itself."""
    return Measure(mean(values).rows, proportion)


def proportion(sums: np.ndarray) -> np.ndarray:
    """The share of Σ of zeros and ones in Σ 1."""
    return quotient(sums)


def quotient(sums: np.ndarray) -> np.ndarray:
    """sums[..., 0] / sums[..., 1], NaN over 0."""
    tops, bottoms = sums[..., 0], sums[..., 1]
    return np.divide(tops, bottoms, out=np.full(np.shape(tops), math.nan), where=bottoms != 0)


def interval(measure: Measure, seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """The 95% interval of a figure; None where fewer than two prompts have a value.

    By the bias-corrected and accelerated bootstrap over prompts (Efron 1987, "Better Bootstrap Confidence Intervals");
    that of a `share` is Wilson's.
    """
    rows = measure.rows[measure.known]
    if len(rows) < 2:
        return None
    if measure.of is proportion:
        return wilson(rows[:, 0].sum(), len(rows))
    return _bootstrap(lambda prompts: measure.of(rows[prompts].sum(axis=-2)), rows.shape, seed, resamples)


def difference(
    a: Measure, b: Measure, seed: int = 0, resamples: int = RESAMPLES, permutations: int = PERMUTATIONS
) -> Difference:
    """The figure of `a` less that of `b`, both on the same prompts.

    The interval resamples prompts, and both sides of a prompt stay together. p is that of a two-sided paired
    permutation test: if a and b were the same, each prompt's two answers could be exchanged (Fisher 1935; for BLEU,
    approximate randomization: Riezler and Maxwell 2005). It is exact when all 2^N exchanges are fewer than
    `permutations`.
    """
    both = a.known & b.known
    pooled, n = np.concatenate([a.rows[both], b.rows[both]]), int(both.sum())
    of = a.of

    def less(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        return of(pooled[first].sum(axis=-2)) - of(pooled[second].sum(axis=-2))

    if n == 0:
        return Difference(math.nan, None, None, 0)
    first, second = np.arange(n), np.arange(n, 2 * n)
    value = float(less(first, second))
    if n < 2:
        return Difference(value, None, None, n)
    if np.array_equal(pooled[:n], pooled[n:]):
        return Difference(0.0, Interval(0.0, 0.0), 1.0, n)
    found = _bootstrap(lambda prompts: less(prompts, prompts + n), (n, 2 * pooled.shape[1]), seed, resamples)
    test = stats.permutation_test(
        (first, second),
        less,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, _AT_ONCE // pooled.size),
        rng=np.random.default_rng(seed),
    )
    return Difference(value, found, float(test.pvalue), n)


def _bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], seed: int, resamples: int
) -> Interval | None:
    """`statistic`: prompts (..., N) -> figures (...). `shape`: N, and the numbers that it adds up for each."""
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # BCa warns where all resamples agree; then the percentiles say it
            found = stats.bootstrap(
                (np.arange(shape[0]),),
                lambda prompts, axis=-1: statistic(prompts),
                vectorized=True,
                method=method,
                confidence_level=CONFIDENCE,
                n_resamples=resamples,
                batch=max(1, _AT_ONCE // math.prod(shape)),
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(found.low) and np.isfinite(found.high):
            return Interval(float(found.low), float(found.high))
    return None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number m; None stays None and does not count.

        p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),   p_(1) <= p_(2) <= ...

    The chance that any of the true null hypotheses falls below 0.05 is then at most 0.05 (Holm 1979, "A Simple
    Sequentially Rejective Multiple Test Procedure").
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def win_rate(outcomes: Sequence[float | None]) -> WinRate | None:
    """Wins of the first side out of outcomes in [0, 1]: 1 it wins, 0 it loses, 0.5 a tie; None: not judged.

    The rate is the mean outcome, so a tie is half a win; its interval is Wilson's, which ties make wider than it need
    be, never too narrow. p is that of the two-sided sign test of wins against losses, exact, ties left out.
    """
    known = [outcome for outcome in outcomes if outcome is not None]
    if not known:
        return None
    wins, losses = sum(x > 0.5 for x in known), sum(x < 0.5 for x in known)
    p = stats.binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    total = math.fsum(known)
    return WinRate(total / len(known), wilson(total, len(known)), wins, len(known) - wins - losses, losses, float(p))


def wilson(successes: float, n: int) -> Interval:
    """The 95% score interval of a share.

        (k + z²/2 ± z sqrt(k (n - k) / n + z²/4)) / (n + z²)

    Unlike scipy's `binomtest(k, n).proportion_ci(method="wilson")` it takes half successes (Wilson 1927, "Probable
    Inference, the Law of Succession, and Statistical Inference").
    """
    z = stats.norm.ppf((1 + CONFIDENCE) / 2)
    center, width = successes + z * z / 2, z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    low, high = (center - width) / (n + z * z), (center + width) / (n + z * z)
    return Interval(max(0.0, float(low)), min(1.0, float(high)))
