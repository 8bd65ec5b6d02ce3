"""Intervals and agreement of judges, against published figures and a pencil."""

import pytest

from pipeline.exam.statistics import wilson
from pipeline.judging import agreement


@pytest.mark.parametrize(
    "successes, n, low, high",  # Newcombe 1998, Table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for successes, n in ((3, 7), (10, 10), (50, 200)):
        found = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson(successes, n) == pytest.approx((found.low, found.high))


def test_kappa_by_pencil():
    # Of 100: both yes 45, both no 15, apart 15 and 25: p_o = 0.6. Yes 60 and 70 times: p_e = 0.6 * 0.7 + 0.4 * 0.3.
    units = [("yes", "yes")] * 45 + [("yes", "no")] * 15 + [("no", "yes")] * 25 + [("no", "no")] * 15
    assert agreement.cohen_kappa(units) == pytest.approx(0.06 / 0.46)
    assert agreement.cohen_kappa([("a", "b"), ("b", "a")]) == pytest.approx(-1)
    assert agreement.cohen_kappa([("a", "a")] * 3) is None and agreement.cohen_kappa([]) is None


# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": his examples A, B and C; a dot is a gap.
PUBLISHED = {
    "binary, two observers": (["0100000010", "1110010000"], 0.095),
    "nominal, two observers": (["aabbdcccedda", "babbbccceddd"], 0.692),
    "nominal, four observers, gaps": (["123321412...", "1233224125.3", ".3332342251.", "12332441251."], 0.743),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_alpha_is_the_published_one(name):
    observers, alpha = PUBLISHED[name]
    units = [[value for value in column if value != "."] for column in zip(*observers, strict=True)]
    assert agreement.krippendorff_alpha(units) == pytest.approx(alpha, abs=5e-4)


def test_alpha_at_the_edges():
    assert agreement.krippendorff_alpha(["aa", "bb"]) == 1
    assert agreement.krippendorff_alpha(["aa", "aa"]) is None  # no variation: nothing to agree about
    assert agreement.krippendorff_alpha(["a", "b", ""]) is None


def test_raw_agreement_by_pencil():
    assert agreement.raw_agreement(["aab", "bb", "a"]) == pytest.approx(2 / 4)  # 1 of 3 pairs, then 1 of 1
    assert agreement.raw_agreement(["a"]) is None
