import numpy as np
import pytest

from isthmus.core.errors import ShapeError
from isthmus.evaluation.clustered import clustered_rate, per_prompt
from isthmus.evaluation.intervals import mean_interval, wilson_interval


def test_draws_of_a_prompt_are_averaged_and_prompts_keep_their_order():
    # Two draws of three prompts.
    np.testing.assert_array_equal(per_prompt(np.array([1.0, 0, 0, 1, 1, 0]), 3), [1, 0.5, 0])


def test_a_rate_over_draws_has_the_interval_of_the_prompts_rates():
    hits = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    assert clustered_rate(hits, 8, seed=3) == mean_interval(per_prompt(hits, 8), seed=3)


def test_asking_a_prompt_again_and_again_makes_nothing_more_certain():
    once = np.array([1.0, 0, 1, 1, 0, 0, 0, 1])
    assert clustered_rate(np.tile(once, 20), 8) == clustered_rate(once, 8)
    often = wilson_interval(80, 160)
    asked = clustered_rate(np.tile(once, 20), 8)
    assert asked.high - asked.low > 3 * (often.high - often.low)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_what_never_or_always_happens_is_as_uncertain_as_its_number_of_prompts(hit: float):
    assert clustered_rate(np.full(60, hit), 6) == wilson_interval(int(6 * hit), 6)


@pytest.mark.parametrize(("n_values", "n_prompts"), [(0, 3), (7, 3), (6, 0)])
def test_draws_that_do_not_fit_the_prompts_are_refused(n_values: int, n_prompts: int):
    with pytest.raises(ShapeError, match="same number of draws"):
        per_prompt(np.zeros(n_values), n_prompts)
