import numpy as np
import pytest

from isthmus.core.errors import ShapeError
from isthmus.evaluation.clustered import clustered_rate, per_prompt
from isthmus.evaluation.intervals import wilson_interval


def test_draws_of_a_prompt_are_averaged_and_prompts_keep_their_order():
    # Two draws of three prompts.
    np.testing.assert_array_equal(per_prompt(np.array([1.0, 0, 0, 1, 1, 0]), 3), [1, 0.5, 0])


def test_the_interval_of_a_rate_over_draws_covers_the_rate():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        rates = rng.beta(0.1, 0.9, size=8)
        hits = (rng.random((4, 8)) < rates).ravel().tolist()
        interval = clustered_rate(hits, 8)
        covered += interval.low <= 0.1 <= interval.high
    assert covered >= 0.92 * 200


def test_asking_a_prompt_again_and_again_makes_nothing_more_certain():
    once = [True, False, True, True, False, False, False, True]
    asked, often = clustered_rate(once * 20, 8), wilson_interval(80, 160)
    assert asked.high - asked.low > 3 * (often.high - often.low)
    alone = clustered_rate(once, 8)
    assert asked.high - asked.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_prompts_about_one_thing_are_no_more_certain_than_one_of_them():
    once = [True, True, False, False, True, True, True, True]
    pairs = clustered_rate(once * 3, 8, ["a", "a", "b", "b", "c", "c", "d", "d"])
    alone = clustered_rate(once[::2] * 3, 4)
    assert pairs == alone


@pytest.mark.parametrize("hit", [False, True])
def test_what_never_or_always_happens_is_about_as_uncertain_as_its_number_of_prompts(hit):
    found, prompts = clustered_rate([hit] * 60, 6), wilson_interval(6 * hit, 6)
    assert found.value == prompts.value
    assert found.high - found.low == pytest.approx(prompts.high - prompts.low, rel=0.1)


@pytest.mark.parametrize(("n_values", "n_prompts"), [(0, 3), (7, 3), (6, 0)])
def test_draws_that_do_not_fit_the_prompts_are_refused(n_values: int, n_prompts: int):
    with pytest.raises(ShapeError, match="same number of draws"):
        per_prompt(np.zeros(n_values), n_prompts)
    with pytest.raises(ShapeError, match="same number of draws"):
        clustered_rate([False] * n_values, n_prompts)
