import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ConfigError, DataError, NonFiniteError
from isthmus.evaluation.intervals import (
    Interval,
    count_contents,
    mean_interval,
    paired_bootstrap,
    rate_interval,
    resample_weights,
    wilson_interval,
)


def mean_of(values):
    return lambda rows: values[rows].mean(axis=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_the_rate_and_stays_within_zero_and_one(counts):
    successes, n = counts
    interval = wilson_interval(successes, n)
    assert interval.value == successes / n
    assert -1e-12 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1 + 1e-12
    assert interval.low < interval.high


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_intervals_of_successes_and_failures_mirror_each_other(counts):
    successes, n = counts
    one, other = wilson_interval(successes, n), wilson_interval(n - successes, n)
    assert one.low == pytest.approx(1 - other.high)
    assert one.high == pytest.approx(1 - other.low)


def test_a_rate_of_one_is_not_certain():
    assert wilson_interval(20, 20).low < 0.9


def test_more_trials_and_less_confidence_narrow_a_wilson_interval():
    def width(interval):
        return interval.high - interval.low

    assert width(wilson_interval(50, 100)) < width(wilson_interval(5, 10))
    assert width(wilson_interval(5, 10, level=0.8)) < width(wilson_interval(5, 10))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_a_rate_of_impossible_counts_is_refused(successes, n):
    with pytest.raises(DataError, match=f"{successes} of {n}"):
        wilson_interval(successes, n)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(0, 100))
def test_a_bootstrap_interval_of_a_mean_lies_within_the_data(numbers, seed):
    values = np.array(numbers)
    interval = mean_interval(values, n_resamples=200, seed=seed)
    assert interval.value == pytest.approx(values.mean())
    assert values.min() - 1e-6 <= interval.low <= interval.high <= values.max() + 1e-6


def test_a_statistic_that_never_varies_has_an_interval_of_width_zero():
    interval = mean_interval(np.full(10, 3.0), n_resamples=100)
    assert interval == Interval(3.0, 3.0, 3.0)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=50)
    first = mean_interval(values, n_resamples=200, seed=1)
    assert first == mean_interval(values, n_resamples=200, seed=1)
    assert first != mean_interval(values, n_resamples=200, seed=2)


def test_two_statistics_of_one_seed_see_the_same_resamples():
    values = np.random.default_rng(0).normal(size=40)
    whole, half = (
        paired_bootstrap(mean_of(values * factor), 40, n_resamples=200, seed=3)
        for factor in (1.0, 0.5)
    )
    assert (half.low, half.high) == pytest.approx((whole.low / 2, whole.high / 2))


def test_pairing_keeps_what_belongs_to_one_row_together():
    noisy = np.random.default_rng(0).normal(scale=100, size=60)
    other = noisy - 1.0
    interval = paired_bootstrap(
        lambda rows: noisy[rows].mean(axis=1) - other[rows].mean(axis=1), 60, n_resamples=200
    )
    assert (interval.value, interval.low, interval.high) == pytest.approx((1.0, 1.0, 1.0))


def test_memory_is_bounded_and_the_chunks_do_not_change_the_resamples():
    values = np.random.default_rng(0).normal(size=5000)
    sizes, seen = [], []

    def statistic(rows):
        sizes.append(rows.size)
        seen.append(rows)
        return values[rows].mean(axis=1)

    paired_bootstrap(statistic, 5000, n_resamples=500, seed=4)
    assert max(sizes) <= 1_000_000
    at_once = np.random.default_rng(4).integers(0, 5000, size=(500, 5000))
    assert np.array_equal(np.concatenate(seen[1:]), at_once)


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        interval = mean_interval(rng.normal(size=60), n_resamples=300, seed=seed)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_resamples_without_a_value_are_left_out():
    values = np.arange(10.0)

    def statistic(rows):
        means = values[rows].mean(axis=1)
        return np.where(means > 5.5, np.nan, means)

    assert paired_bootstrap(statistic, 10, n_resamples=500).high <= 5.5


def test_a_statistic_without_a_value_is_undefined_and_not_zero():
    interval = paired_bootstrap(lambda rows: np.full(len(rows), np.nan), 5, n_resamples=10)
    assert not interval.is_defined
    assert all(math.isnan(end) for end in (interval.value, interval.low, interval.high))
    assert Interval(0.0, 0.0, 0.0).is_defined


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, -0.5])
def test_a_confidence_that_is_no_probability_is_refused(level):
    with pytest.raises(ConfigError, match="confidence level"):
        wilson_interval(1, 2, level)
    with pytest.raises(ConfigError, match="confidence level"):
        mean_interval(np.ones(3), level=level)


def test_data_that_cannot_be_resampled_are_refused():
    with pytest.raises(DataError, match="0 rows"):
        mean_interval(np.zeros(0))
    with pytest.raises(ConfigError, match="0 resamples"):
        mean_interval(np.zeros(3), n_resamples=0)
    with pytest.raises(NonFiniteError):
        mean_interval(np.array([1.0, np.nan]))


def repeated(values, times):
    return [value for value in values for _ in range(times)]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_rate_of_rows_that_share_no_content_has_the_plain_wilson_interval(hits):
    plain = wilson_interval(sum(hits), len(hits))
    assert rate_interval(hits) == plain
    assert rate_interval(hits, [None] * len(hits)) == plain
    assert rate_interval(hits, [str(i) for i in range(len(hits))]) == plain


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(2, 6))
def test_phrasings_that_always_agree_are_worth_about_one_row_per_content(hits, times):
    contents = repeated([str(i) for i in range(len(hits))], times)
    found = rate_interval(repeated(hits, times), contents)
    one_each = wilson_interval(sum(hits), len(hits))
    assert found.value == pytest.approx(one_each.value)
    assert (found.low, found.high) == pytest.approx((one_each.low, one_each.high))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 10_000))
def test_one_hit_more_never_makes_a_rate_of_contents_much_surer(n_contents, times, seed):
    contents = repeated([str(i) for i in range(n_contents)], times)
    order = np.random.default_rng(seed).permutation(len(contents))
    widths = []
    for n_hits in range(len(contents) // 2):
        hits = np.isin(np.arange(len(contents)), order[:n_hits])
        interval = rate_interval(hits.tolist(), contents)
        widths.append(interval.high - interval.low)
    assert all(after > 0.75 * before for before, after in itertools.pairwise(widths))


def test_rows_that_vary_within_their_contents_are_worth_nearly_all_of_them():
    rng = np.random.default_rng(2)
    contents = repeated([str(i) for i in range(60)], 4)
    hits = (rng.random(240) < 0.5).tolist()
    found, alone = rate_interval(hits, contents), wilson_interval(sum(hits), 240)
    assert alone.high - alone.low <= found.high - found.low <= 1.2 * (alone.high - alone.low)


def test_an_interval_over_contents_covers_the_rate_where_one_over_rows_does_not():
    rng = np.random.default_rng(0)
    contents = repeated([str(i) for i in range(28)], 5)
    covered = {"contents": 0, "rows": 0}
    for _ in range(400):
        hits = [bool(hit) for hit in repeated(rng.random(28) < 0.6, 5)]
        for name, known in (("contents", contents), ("rows", [])):
            interval = rate_interval(hits, known)
            covered[name] += interval.low <= 0.6 <= interval.high
    assert covered["contents"] >= 0.92 * 400
    assert covered["rows"] <= 0.75 * 400


def test_contents_of_unequal_size_are_drawn_with_all_of_their_rows():
    values = np.array([0.0, 0.0, 0.0, 1.0, 5.0, 5.0])
    contents = ["a", "a", "a", None, "b", "b"]
    drawn = []

    def mean(rows):
        drawn.extend(map(sorted, rows.tolist()))
        return values[rows].mean(axis=1)

    found = paired_bootstrap(mean, 6, contents=contents, n_resamples=300)
    assert found.value == pytest.approx(11 / 6)
    for rows in drawn[1:]:
        n_of_each = [[rows.count(i) for i in group] for group in ((0, 1, 2), (3,), (4, 5))]
        assert all(len(set(counts)) == 1 for counts in n_of_each)
        assert sum(counts[0] for counts in n_of_each) == 3
    assert found.low == pytest.approx(0)
    assert found.high == pytest.approx(5)


def test_a_mean_over_phrasings_is_as_uncertain_as_one_over_contents():
    values = np.random.default_rng(1).normal(size=25)
    many = mean_interval(
        np.repeat(values, 6), contents=repeated([str(i) for i in range(25)], 6), seed=3
    )
    one_each = mean_interval(values, seed=3)
    assert many.value == pytest.approx(one_each.value)
    assert (many.low, many.high) == pytest.approx((one_each.low, one_each.high))


def test_contents_that_are_not_as_many_as_the_rows_are_refused():
    with pytest.raises(DataError, match="1 contents of 2 rows"):
        rate_interval([True, False], ["a"])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=12))
def test_a_resample_as_weights_draws_contents_whole_and_sums_to_one(contents):
    weights = resample_weights(len(contents), 50, contents=contents, seed=1)
    assert weights.sum(axis=1) == pytest.approx(1)
    for content in ("a", "b", "c"):
        rows = [i for i, one in enumerate(contents) if one == content]
        assert np.array_equal(weights[:, rows], np.repeat(weights[:, rows[:1]], len(rows), axis=1))
    assert count_contents(contents, len(contents)) == contents.count(None) + len(
        set(contents) - {None}
    )


def test_means_of_weighted_rows_vary_as_means_of_drawn_rows_do():
    values = np.random.default_rng(0).normal(size=60)
    contents = [str(i % 12) for i in range(60)]
    found = resample_weights(60, 4000, contents=contents) @ values
    drawn = mean_interval(values, contents=contents, n_resamples=4000)
    assert np.quantile(found, (0.025, 0.975)) == pytest.approx((drawn.low, drawn.high), abs=0.03)


@pytest.mark.parametrize("n_contents", [3, 6, 7, 11, 12, 60])
def test_an_interval_of_none_begins_at_zero_and_of_all_ends_at_one_exactly(n_contents):
    contents = [str(i % n_contents) for i in range(4 * n_contents)]
    for hits in ([False] * len(contents), [True] * len(contents)):
        found = rate_interval(hits, contents)
        assert (found.low if not any(hits) else found.high) == float(any(hits))
        assert found.low < found.high
