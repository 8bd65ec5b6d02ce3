"""Intervals, paired tests and win rates: by pencil, and against what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.exam.statistics import Interval, difference, holm, interval, mean, ratio, share, wilson, win_rate


def test_a_mean_leaves_out_what_has_no_value():
    assert mean([1.0, None, 3.0, math.nan]).value() == 2.0
    assert math.isnan(mean([None, None]).value())
    assert ratio([1.0, 9.0], [1.0, 3.0]).value() == 2.5  # 10 / 4, not the mean of 1 and 3
    assert interval(mean([1.0, None])) is None  # one prompt says nothing of its spread


def test_constant_data_has_no_width():
    assert interval(mean([2.5] * 7)) == (2.5, 2.5)
    shifted = difference(mean([2.0, 5.0, 3.0]), mean([1.0, 4.0, 2.0]))
    assert shifted.value == 1.0  # the spread between prompts is on both sides
    assert shifted.interval == pytest.approx((1.0, 1.0), abs=1e-12)


def test_the_interval_of_a_large_sample_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    values = (values - values.mean()) / values.std()  # mean 0, standard deviation 1: ±1.96 / sqrt(400)
    low, high = interval(mean(values))
    assert low == pytest.approx(-0.098, abs=0.01) and high == pytest.approx(0.098, abs=0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Uniform data, 50 prompts, 400 times: 95% is 380, with a standard error of 4.4."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        low, high = interval(mean(rng.uniform(size=50)), resamples=500)
        covered += low <= 0.5 <= high
    assert 367 <= covered <= 390


def test_the_interval_of_a_ratio_resamples_top_and_bottom_together():
    tops = np.random.default_rng(2).integers(1, 30, 50).astype(float)
    found = interval(ratio(3 * tops, tops))
    assert found == pytest.approx((3.0, 3.0), abs=1e-12)


def test_seeds():
    values = mean(np.random.default_rng(3).random(30))
    assert interval(values, seed=1) == interval(values, seed=1) != interval(values, seed=2)


def test_five_positive_differences_have_p_two_in_32():
    found = difference(mean([1.0, 2.0, 3.0, 4.0, 5.0]), mean([0.0, 0.5, 1.0, 1.5, 2.0]))
    assert found.p == pytest.approx(2 / 32, abs=1e-12) and found.prompts == 5
    assert found.value == pytest.approx(2.0)  # differences 1, 1.5, 2, 2.5, 3


def test_a_permutation_test_by_pencil():
    # Differences 3, 1, -2, 4 sum to 6 of 10. A sum of 6 or more: the negative ones sum to 2 at most, which are
    # {}, {1}, {2}: 3 of 16, and as many on the other side.
    found = difference(mean([3.0, 1.0, 0.0, 4.0]), mean([0.0, 0.0, 2.0, 0.0]))
    assert found.value == 1.5 and found.p == pytest.approx(6 / 16, abs=1e-12)


def test_random_permutations_are_near_all_of_them():
    rng = np.random.default_rng(4)
    a, b = mean(rng.normal(0.5, 1, 13)), mean(rng.normal(0, 1, 13))
    exact, drawn = difference(a, b).p, difference(a, b, permutations=4000).p  # 2^13 = 8192
    wanted = stats.permutation_test(
        (a.rows[:, 0] - b.rows[:, 0],), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert exact == pytest.approx(wanted, abs=1e-12)
    assert exact != drawn and drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 4000))


def test_a_difference_takes_the_prompts_that_both_have():
    found = difference(mean([1.0, 2.0, None, 4.0]), mean([0.0, None, 5.0, 1.0]))
    assert (found.value, found.prompts) == (2.0, 2)  # 1 and 3
    nothing = difference(mean([None, 1.0]), mean([1.0, None]))
    assert math.isnan(nothing.value) and nothing[1:] == (None, None, 0)
    same = difference(mean([0.1, 0.7, 0.4]), mean([0.1, 0.7, 0.4]))
    assert same == (0.0, Interval(0.0, 0.0), 1.0, 3)


def test_pairs_stay_together():
    """Two candidates that differ by little on prompts that differ by much."""
    rng = np.random.default_rng(5)
    prompts, noise = rng.normal(0, 10, 100), rng.normal(0, 0.1, 100)
    found = difference(mean(prompts + 1 + noise), mean(prompts))
    assert 0.9 < found.interval.low < 1 < found.interval.high < 1.1 and found.p < 0.001


def test_wilson_by_pencil():
    # z = 1.96: (8 + 1.9207) / 13.8415 ± 1.96 sqrt(8 · 2 / 10 + 0.9604) / 13.8415
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    # ten ties: (5 + 1.9207) / 13.8415 ± 1.96 sqrt(5 · 5 / 10 + 0.9604) / 13.8415
    assert wilson(8.5, 10) == pytest.approx((0.5412, 0.9646), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 3.8415 / 23.8415), abs=1e-4)
    for k, n in ((0, 5), (3, 7), (40, 41), (200, 200)):
        theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_share_of_all_is_not_certain():
    assert interval(share([1.0] * 10)) == wilson(10, 10)
    assert interval(share([1.0, 0.0, None, 1.0])) == wilson(2, 3)
    assert interval(mean([1.0] * 10)) == (1.0, 1.0)


def test_a_win_rate_counts_a_tie_as_half():
    found = win_rate([1.0, 1.0, 1.0, 0.5, None])
    assert (found.rate, found.wins, found.ties, found.losses) == (3.5 / 4, 3, 1, 0)
    assert found.p == pytest.approx(2 / 8)  # three of three decided ones
    assert found.interval == wilson(3.5, 4)
    assert win_rate([0.5, 0.5]).p == 1.0 and win_rate([None]) is None
    unsure = win_rate([0.9, 0.2])
    assert (unsure.rate, unsure.wins, unsure.losses) == (pytest.approx(0.55), 1, 1)


def test_holm_by_pencil():
    # 3 tests: 0.01 · 3, 0.03 · 2, and 0.04 · 1 not below the one before it
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
