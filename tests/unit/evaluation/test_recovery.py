import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import DataError, NonFiniteError, ShapeError
from isthmus.evaluation.recovery import MIN_GAP, AnswerLosses, recovery, swap, swap_loss


def drawn(seed, n=24, gap=2.0, closed=0.5):
    """Losses with a clear gap, of which the edit closes a part."""
    rng = np.random.default_rng(seed)
    clean = rng.uniform(0.1, 0.5, n)
    bad = clean + gap + rng.normal(0, 0.3, n)
    edited = bad - closed * (bad - clean) + rng.normal(0, 0.2, n)
    return AnswerLosses(bad, clean, edited)


SEEDS = st.integers(0, 10**6)
FEW = {"n_resamples": 200}


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_an_edit_without_effect_recovers_nothing(seed):
    losses = drawn(seed)
    interval = recovery(losses.bad, losses.clean, losses.bad, **FEW)
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_an_edit_as_good_as_the_clean_prompt_recovers_everything(seed):
    losses = drawn(seed)
    interval = recovery(losses.bad, losses.clean, losses.clean, **FEW)
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(-2, 3), st.floats(-2, 3))
def test_recovery_is_linear_in_the_loss_under_the_edit(seed, one, other):
    losses = drawn(seed)

    def value(closed):
        edited = losses.bad - closed * (losses.bad - losses.clean)
        return recovery(losses.bad, losses.clean, edited, n_resamples=50).value

    assert value(one) == pytest.approx(one, abs=1e-9)
    assert value((one + other) / 2) == pytest.approx((value(one) + value(other)) / 2, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(0.1, 10), st.floats(-3, 3))
def test_recovery_depends_neither_on_the_unit_nor_on_the_zero_of_the_loss(seed, scale, shift):
    losses = drawn(seed)
    moved = (scale * one + shift for one in (losses.bad, losses.clean, losses.edited))
    here, there = recovery(losses.bad, losses.clean, losses.edited, **FEW), recovery(*moved, **FEW)
    assert (there.value, there.low, there.high) == pytest.approx((here.value, here.low, here.high))


def test_an_edit_that_harms_recovers_less_than_nothing():
    losses = drawn(0)
    assert recovery(losses.bad, losses.clean, losses.bad + 1, **FEW).high < 0


def test_recovery_is_a_ratio_of_means_and_not_a_mean_of_ratios():
    bad, clean, edited = np.array([1.0, 10.0]), np.array([0.0, 0.0]), np.array([0.0, 10.0])
    assert recovery(bad, clean, edited, **FEW).value == pytest.approx(1 / 11)


def test_the_losses_of_single_precision_models_are_accepted():
    losses = drawn(0)
    single = [x.astype(np.float32) for x in (losses.bad, losses.clean, losses.edited)]
    expected = recovery(losses.bad, losses.clean, losses.edited, **FEW).value
    assert recovery(*single, **FEW).value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gap", [MIN_GAP, 0.01, 0.0, -1.0])
def test_recovery_is_undefined_where_the_prompts_hardly_differ(gap):
    clean = np.full(20, 0.5)
    bad = clean + gap - 1e-9
    assert not recovery(bad, clean, clean, **FEW).is_defined


def test_recovery_is_defined_just_above_the_smallest_gap():
    clean = np.full(20, 0.5)
    assert recovery(clean + MIN_GAP + 1e-6, clean, clean, **FEW).is_defined


def test_recovery_is_undefined_where_the_gap_may_be_zero():
    clean = np.zeros(6)
    bad = np.array([3.0, -2.5, 3.0, -2.5, 2.0, -1.0])
    assert (bad - clean).mean() > MIN_GAP
    assert not recovery(bad, clean, clean, **FEW).is_defined


def test_a_resample_without_a_gap_has_no_recovery():
    losses = AnswerLosses(np.array([3.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0]), np.ones(3))
    ratios = losses.ratios(np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2], [0, 0, 1]]))
    assert np.isnan(ratios).tolist() == [False, True, True, False]
    assert ratios[[0, 3]].tolist() == [1.0, 1.0]


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))
def test_swap_is_at_most_either_recovery_and_so_are_its_ends(seed, removed, induced):
    removal, induction = drawn(seed, closed=removed), drawn(seed + 1, closed=induced)
    both = swap(removal, induction, **FEW)
    for half in (removal, induction):
        one = recovery(half.bad, half.clean, half.edited, **FEW)
        assert both.value <= one.value
        assert both.low <= one.low
        assert both.high <= one.high


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_swap_does_not_depend_on_which_half_comes_first(seed):
    removal, induction = drawn(seed, closed=0.9), drawn(seed + 1, closed=0.8)
    assert swap(removal, induction, **FEW) == swap(induction, removal, **FEW)


def test_swap_of_one_half_with_itself_is_its_recovery():
    losses = drawn(3)
    assert swap(losses, losses, **FEW) == recovery(losses.bad, losses.clean, losses.edited, **FEW)


def test_noise_that_breaks_the_behaviour_has_a_recovery_but_no_swap():
    broken, not_induced = drawn(0, closed=0.7), drawn(1, closed=0.0)
    assert recovery(broken.bad, broken.clean, broken.edited, **FEW).value > 0.6
    assert swap(broken, not_induced, **FEW).value < 0.1


def test_swap_is_undefined_if_one_half_is():
    hardly, clearly = drawn(0, gap=0.0), drawn(1)
    assert not swap(hardly, clearly, **FEW).is_defined
    assert not swap(clearly, hardly, **FEW).is_defined


def test_swap_of_different_numbers_of_prompts_is_refused():
    with pytest.raises(ShapeError, match="24 prompts for removal and 25 for induction"):
        swap(drawn(0), drawn(0, n=25))


def test_losses_of_no_prompt_are_refused():
    with pytest.raises(DataError, match="no prompt"):
        recovery(np.zeros(0), np.zeros(0), np.zeros(0))


def test_losses_of_different_numbers_of_prompts_are_refused():
    # The run-time type checks refuse them first; this is the check that users meet.
    losses = SimpleNamespace(bad=np.zeros(3), clean=np.zeros(3), edited=np.zeros(2))
    with pytest.raises(ShapeError, match=r"\[3, 3, 2\] losses"):
        AnswerLosses.__post_init__(losses)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_with_its_name(bad):
    with pytest.raises(NonFiniteError, match="edited loss"):
        recovery(np.ones(2), np.zeros(2), np.array([1.0, bad]))


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_a_swap_loses_nothing_to_itself(seed):
    both = (drawn(seed), drawn(seed + 1, closed=0.7))
    interval = swap_loss(both, both, **FEW)
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_a_loss_of_swap_is_the_difference_of_both_swaps(seed):
    kept = (drawn(seed, closed=0.9), drawn(seed + 1, closed=0.8))
    less = (drawn(seed, closed=0.4), drawn(seed + 1, closed=0.3))
    rounding = 1e-9
    interval = swap_loss(kept, less, **FEW)
    assert interval.value == pytest.approx(swap(*kept, **FEW).value - swap(*less, **FEW).value)
    assert interval.low - rounding <= interval.value <= interval.high + rounding
    assert swap_loss(less, kept, **FEW).value == pytest.approx(-interval.value)


def test_what_all_questions_lose_alike_has_no_spread_however_the_questions_differ():
    bad, clean = np.arange(1.0, 9.0) + 1, np.arange(1.0, 9.0)

    def closed(part):
        losses = AnswerLosses(bad, clean, bad - part)
        return losses, losses

    interval = swap_loss(closed(0.8), closed(0.5), **FEW)
    assert interval.low == pytest.approx(0.3)
    assert interval.high == pytest.approx(0.3)


def test_a_loss_of_swap_needs_the_same_prompts_and_gaps_to_divide_by():
    both, fewer = (drawn(0), drawn(1)), (drawn(0, n=12), drawn(1, n=12))
    with pytest.raises(ShapeError):
        swap_loss(both, fewer)
    flat = drawn(2, gap=0.0)
    assert not swap_loss(both, (flat, flat), **FEW).is_defined
