"""Intervals against scipy's bootstrap and the textbook formula."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from isthmus.evaluation.intervals import mean_interval, paired_bootstrap, wilson_interval
from isthmus.evaluation.recovery import recovery


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 10), (50, 100), (256, 256), (1, 1)])
def test_the_wilson_interval_is_the_one_of_the_textbook(successes, n, level):
    z, p = norm.ppf(0.5 + level / 2), successes / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = wilson_interval(successes, n, level)
    assert (interval.low, interval.high) == pytest.approx((middle - half, middle + half))


def scipy_interval(data, statistic, seed, level):
    result = bootstrap(
        data,
        statistic,
        n_resamples=1000,
        paired=True,
        vectorized=False,
        method="percentile",
        confidence_level=level,
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_mean_has_the_interval_of_scipy_for_the_same_resamples(level):
    values = np.random.default_rng(1).exponential(size=37)
    expected = scipy_interval((values,), np.mean, 5, level)
    interval = mean_interval(values, n_resamples=1000, seed=5, level=level)
    assert (interval.low, interval.high) == pytest.approx(expected)


@pytest.mark.parametrize("n", [12, 80])
def test_a_ratio_of_paired_means_has_the_interval_of_scipy(n):
    rng = np.random.default_rng(2)
    below = rng.normal(5, 1, n)
    above = 0.5 * below + rng.normal(0, 0.3, n)
    expected = scipy_interval((above, below), lambda a, b: a.mean() / b.mean(), 7, 0.95)
    interval = paired_bootstrap(
        lambda rows: above[rows].mean(axis=1) / below[rows].mean(axis=1),
        n,
        n_resamples=1000,
        seed=7,
    )
    assert interval.value == pytest.approx(above.mean() / below.mean())
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_recovery_has_the_interval_of_scipy():
    rng = np.random.default_rng(3)
    bad, clean = rng.normal(3, 0.5, 40), rng.normal(1, 0.5, 40)
    edited = 0.3 * bad + 0.7 * clean + rng.normal(0, 0.2, 40)

    def statistic(b, c, e):
        return (b.mean() - e.mean()) / (b.mean() - c.mean())

    expected = scipy_interval((bad, clean, edited), statistic, 11, 0.95)
    interval = recovery(bad, clean, edited, n_resamples=1000, seed=11)
    assert interval.value == pytest.approx(statistic(bad, clean, edited))
    assert (interval.low, interval.high) == pytest.approx(expected)
