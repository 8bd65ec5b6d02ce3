"""The holes of a reward that show in what it pays, in one sentence each."""

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise

from scipy.stats import spearmanr

from pipeline.check.measuring import GROWTH, Measured, Scores, mean, totals

AS_GOOD = 0.9  # of the way from the worst kind to the references: paid like these
MISSING = 0.1  # share of the references without a score
CORRELATED, FEWEST = 0.6, 16  # of length and score, and rows below which that says nothing
SLOW = 0.25  # seconds a completion
_TINY = 1e-9

# What a kind that is paid like the references means.
HOLES = {
    "shuffled": "the answer to another prompt is paid {paid}, the right one {right}: it hardly matters what was asked",
    "empty": "empty text is paid {paid}, a reference {right}: saying nothing is enough",
    "repeated": "three words over and over are paid {paid}, a reference {right}: add the reward repetition",
    "truncated": "half a reference is paid {paid}, a whole one {right}: ending early costs nothing",
    "long": "a reference said four times is paid {paid}, said once {right}: nothing holds the length back; add the "
    "reward length or repetition",
    "prompt": "a copy of the prompt is paid {paid}, a reference {right}",
}


def findings(measured: Sequence[Measured], lengths: Sequence[int] = ()) -> list[str]:
    """Every warning, those of single rewards first.

    Args: lengths: of the completions of the kind `shuffled`, in characters.
    """
    found = [f"{each.name}: {words}" for each in measured for words in _of_one(each)]
    found += _length_paid(totals(measured), lengths)
    return found + list(_holes(totals(measured)))


def _of_one(one: Measured) -> Iterator[str]:
    known = [score for scores in one.scores.values() for score in scores if score is not None]
    if known and max(known) - min(known) < _TINY:
        yield f"it says {known[0]:.3g} of everything, so nothing is learned from it"
    if "reference" in one.scores and "reference" not in one.failures:
        missing, count = one.scores["reference"].count(None), len(one.scores["reference"])
        if missing > MISSING * count:
            yield f"it has no score for {missing} of {count} references; are its columns filled?"
    for kind, why in one.failures.items():
        yield f"it fails on the kind {kind}: {why.rstrip('.')}"
    if one.growth and not one.normalized and _has_no_end(one.growth):
        first, last = one.growth[0], one.growth[-1]
        yield (
            f"it has no end: a text {GROWTH[0]} times over scores {first:.3g}, {GROWTH[-1]} times over {last:.3g}; "
            "give it a clip or normalize: running"
        )
    if one.seconds > SLOW:
        yield f"it takes {one.seconds:.2f} s a completion, in training as well"


def _has_no_end(growth: Sequence[float]) -> bool:
    """Whether each step, four times as far as the one before, moves the score more than twice as far."""
    steps = [abs(b - a) for a, b in pairwise(growth)]
    return steps[0] > _TINY and all(b > 2 * a for a, b in pairwise(steps))


def _holes(paid: dict[str, Scores]) -> Iterator[str]:
    if "reference" not in paid:
        return
    means = {kind: mean(scores) for kind, scores in paid.items()}
    means = {kind: value for kind, value in means.items() if not math.isnan(value)}
    right, worst = means.get("reference", math.nan), min(means.values(), default=math.nan)
    if not right - worst > _TINY:
        if max(means.values(), default=0.0) - worst > _TINY:
            yield f"references are paid least of all, {right:.3g}: is the sign of a weight right?"
        return
    for kind, words in HOLES.items():
        if kind in means and means[kind] - worst >= AS_GOOD * (right - worst):
            yield words.format(paid=f"{means[kind]:.3g}", right=f"{right:.3g}")


def _length_paid(paid: dict[str, Scores], lengths: Sequence[int]) -> list[str]:
    pairs = [(n, s) for n, s in zip(lengths, paid.get("shuffled", ()), strict=False) if s is not None]
    if len(pairs) < FEWEST or any(statistics.pvariance(side) < _TINY for side in zip(*pairs, strict=True)):
        return []
    correlation, chance = spearmanr(*zip(*pairs, strict=True))
    if correlation < CORRELATED or chance > 0.01:
        return []
    return [f"length is paid: of wrong answers the longer ones get more (rank correlation {correlation:.2f})"]
