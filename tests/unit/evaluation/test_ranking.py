import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from tests.unit.maps.pairs import without_shape_checks

from isthmus.core.errors import DataError, NonFiniteError, ShapeError
from isthmus.evaluation.ranking import auroc_interval, rank_bound, unpaired_auroc_interval


@pytest.mark.parametrize("asked", [1, 2])
def test_the_area_equals_scikit_learns_with_ties(asked: int):
    rng = np.random.default_rng(0)
    positive = rng.integers(0, 6, 40).astype(float) + 1
    negative = rng.integers(0, 6, (40, asked)).astype(float)
    expected = roc_auc_score([1] * 40 + [0] * 40 * asked, [*positive, *negative.ravel()])
    found = auroc_interval(positive, negative, n_resamples=300)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < expected < found.high


def test_the_interval_equals_scikit_learn_on_the_same_resampled_questions():
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(1, 1, 30), rng.normal(0, 1, (30, 2))
    drawn = np.random.default_rng(5).integers(0, 30, size=(200, 30))
    labels = [1] * 30 + [0] * 60
    areas = [roc_auc_score(labels, [*positive[r], *negative[r].ravel()]) for r in drawn]
    found = auroc_interval(positive, negative, n_resamples=200, seed=5)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(areas, (0.025, 0.975))))


def test_asking_one_thing_in_other_words_makes_an_area_no_more_certain():
    rng = np.random.default_rng(2)
    positive, negative = rng.normal(1, 1, 12), rng.normal(0, 1, (12, 2))
    contents = [str(i) for i in range(12)]
    alone = auroc_interval(positive, negative, contents=contents, seed=3)
    thrice = auroc_interval(
        np.tile(positive, 3), np.tile(negative, (3, 1)), contents=contents * 3, seed=3
    )
    for end in ("value", "low", "high"):
        assert getattr(thrice, end) == pytest.approx(getattr(alone, end))


def test_phrasings_of_one_question_are_resampled_together():
    rng = np.random.default_rng(2)
    positive, negative = rng.normal(0.7, 1, 24), rng.normal(0, 1, (24, 1))
    once = auroc_interval(positive, negative, n_resamples=1000)
    contents = [str(i) for i in range(24)] * 6
    several = np.tile(positive, 6), np.tile(negative, (6, 1))
    found = auroc_interval(*several, contents=contents, n_resamples=1000)
    assert (found.value, found.low, found.high) == pytest.approx((once.value, once.low, once.high))
    alone = auroc_interval(*several, n_resamples=1000)
    assert alone.high - alone.low < 0.6 * (once.high - once.low)


def test_contents_with_unequally_many_questions_are_drawn_whole():
    positive, negative = np.array([2.0, 2.0, 2.0, 0.0]), np.ones((4, 1))
    found = auroc_interval(positive, negative, contents=["a", "a", "a", "b"], n_resamples=200)
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)


def test_perfect_and_perfectly_wrong_scores_are_one_and_zero():
    high, low = np.full(5, 2.0), np.full((5, 1), 1.0)
    assert auroc_interval(high, low).value == 1
    assert auroc_interval(low[:, 0], high[:, None]).value == 0


@pytest.mark.parametrize("n", [2, 12, 128])
def test_a_perfect_ranking_of_few_is_no_certainty(n: int):
    high, low = np.full(n, 2.0), np.full((n, 1), 1.0)
    right, wrong = auroc_interval(high, low), auroc_interval(low[:, 0], high[:, None])
    assert (right.low, right.high) == (rank_bound(n, n), 1.0)
    assert (wrong.low, wrong.high) == (0.0, pytest.approx(1 - rank_bound(n, n)))
    alone = unpaired_auroc_interval(high, low[:, 0])
    assert (alone.low, alone.high) == (rank_bound(n, n), 1.0)
    phrased = auroc_interval(
        np.tile(high, 3), np.tile(low, (3, 1)), contents=[str(i) for i in range(n)] * 3
    )
    assert phrased.low == right.low


@pytest.mark.parametrize(("m", "n"), [(2, 2), (10, 40), (300, 300)])
def test_the_bound_is_the_area_whose_standard_errors_just_reach_one(m: int, n: int):
    area = rank_bound(m, n)
    # Hanley and McNeil's variance with both sizes replaced by their mean.
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    mean = (m + n) / 2
    variance = area * (1 - area) + (mean - 1) * (q1 - area**2 + q2 - area**2)
    assert (1 - area) / np.sqrt(variance / (m * n)) == pytest.approx(1.959964, rel=1e-4)
    assert rank_bound(m + 1, n) > area
    assert rank_bound(m, n, level=0.99) < area


def test_scores_of_an_area_at_the_bound_hardly_ever_rank_perfectly():
    rng, n = np.random.default_rng(3), 6
    shift = np.sqrt(2) * norm.ppf(rank_bound(n, n))
    positive, negative = rng.normal(shift, 1, (4000, n)), rng.normal(0, 1, (4000, n))
    assert (positive.min(1) > negative.max(1)).mean() < 0.05


def test_scores_that_cannot_be_ranked_are_refused():
    with without_shape_checks(), pytest.raises(ShapeError, match="both forms of every"):
        auroc_interval(np.ones(2), np.ones((3, 1)))
    with pytest.raises(DataError, match="no scores"):
        auroc_interval(np.ones(0), np.ones((0, 1)))
    with pytest.raises(NonFiniteError, match="NaN"):
        auroc_interval(np.array([np.nan]), np.ones((1, 1)))


def test_classes_that_are_no_pairs_have_scikit_learns_area_and_each_is_resampled_by_itself():
    rng = np.random.default_rng(7)
    positive = rng.integers(0, 9, 25).astype(float) + 2
    negative = rng.integers(0, 9, 60).astype(float)
    labels = [1] * 25 + [0] * 60
    found = unpaired_auroc_interval(positive, negative, n_resamples=4000)
    assert found.value == pytest.approx(roc_auc_score(labels, [*positive, *negative]), abs=1e-12)
    areas = [
        roc_auc_score(labels, [*rng.choice(positive, 25), *rng.choice(negative, 60)])
        for _ in range(2000)
    ]
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(areas, (0.025, 0.975))), abs=0.01
    )


def test_scores_that_cannot_be_ranked_without_pairs_are_refused_too():
    with pytest.raises(DataError, match="no scores"):
        unpaired_auroc_interval(np.zeros(0), np.ones(3))
    with pytest.raises(NonFiniteError, match="NaN"):
        unpaired_auroc_interval(np.array([np.nan]), np.ones(3))
