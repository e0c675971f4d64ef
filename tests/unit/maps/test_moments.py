import gc
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.maps.pairs import independent_noise, moments_of, without_shape_checks

from isthmus.core.errors import FitError, NonFiniteError, ShapeError
from isthmus.maps import PairMoments
from isthmus.maps.moments import require_fittable


def assert_moments_are_those_of(moments: PairMoments, x: torch.Tensor, y: torch.Tensor) -> None:
    dx, dy = x - x.mean(0), y - y.mean(0)
    assert moments.n == len(x)
    torch.testing.assert_close(moments.source_mean, x.mean(0))
    torch.testing.assert_close(moments.target_mean, y.mean(0))
    torch.testing.assert_close(moments.source_scatter, dx.T @ dx)
    torch.testing.assert_close(moments.cross_scatter, dx.T @ dy)
    torch.testing.assert_close(moments.target_total, dy.square().sum())


@settings(deadline=None, max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=5),
    merge_from=st.integers(0, 6),
    offset=st.floats(-100, 100),
)
def test_streamed_moments_equal_those_of_all_rows_at_once(cuts, merge_from, offset):
    x, y = independent_noise(40, 5, 3, seed=0)
    x, y = x + offset, y - offset
    edges = [0, *sorted(cuts), 40]
    first, second = PairMoments(5, 3), PairMoments(5, 3)
    for index, (start, end) in enumerate(itertools.pairwise(edges)):
        part = second if index >= merge_from else first
        part.update(x[start:end], y[start:end])
    n_before = second.n
    first.merge(second)
    assert second.n == n_before
    assert_moments_are_those_of(first, x, y)


def test_batches_longer_than_one_chunk_are_summed_whole():
    x, y = independent_noise(8192 * 2 + 7, 2, 2, seed=1)
    assert_moments_are_those_of(moments_of(x, y), x, y)


@pytest.mark.parametrize(("d_source", "d_target"), [(300, 3), (3, 600), (300, 600)])
def test_wide_activations_are_summed_whole(d_source: int, d_target: int):
    x, y = independent_noise(1100, d_source, d_target, seed=3)
    moments = moments_of(x[:40], y[:40])
    before = moments.source_scatter.clone()
    moments.update(x[40:], y[40:])
    torch.testing.assert_close(before, before.T)
    assert_moments_are_those_of(moments, x, y)


def test_moments_survive_activations_that_lie_far_from_zero():
    x, y = independent_noise(500, 3, 2, seed=2)
    far = PairMoments(3, 2)
    for start in range(0, 500, 50):
        far.update(x[start : start + 50] + 1e6, y[start : start + 50] - 1e6)
    near = moments_of(x, y)
    torch.testing.assert_close(far.source_scatter, near.source_scatter, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(far.cross_scatter, near.cross_scatter, rtol=1e-6, atol=1e-6)


def test_float16_activations_are_summed_in_float64():
    x = torch.full((4096, 1), 1000.0, dtype=torch.float16)
    x[0] += 1
    moments = moments_of(x, x)
    assert moments.target_total.item() == pytest.approx(1 - 1 / 4096)


def test_no_row_is_kept():
    moments = PairMoments(3, 2)
    before = [t.shape for t in vars(moments).values() if isinstance(t, torch.Tensor)]
    for seed in range(5):
        moments.update(*independent_noise(100, 3, 2, seed=seed))
    gc.collect()
    assert [t.shape for t in vars(moments).values() if isinstance(t, torch.Tensor)] == before


def test_updating_leaves_the_activations_and_an_earlier_reference_unchanged():
    x, y = independent_noise(10, 3, 2, seed=3)
    moments = moments_of(x, y)
    kept_x, kept_scatter = x.clone(), moments.source_scatter
    kept_values = kept_scatter.clone()
    moments.update(x, y)
    assert torch.equal(x, kept_x)
    assert torch.equal(kept_scatter, kept_values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_activations_that_are_not_finite_are_refused_and_nothing_is_added(bad, side):
    pair = independent_noise(10, 3, 2, seed=4)
    pair[side][7, 1] = bad
    moments = PairMoments(3, 2)
    with pytest.raises(NonFiniteError, match=("source", "target")[side]):
        moments.update(*pair)
    assert moments.n == 0


def test_pairs_that_do_not_fit_are_refused():
    moments = PairMoments(3, 2)
    with pytest.raises(ShapeError, match="4 → 2 do not fit moments of widths 3 → 2"):
        moments.update(torch.zeros(5, 4), torch.zeros(5, 2))
    with without_shape_checks(), pytest.raises(ShapeError, match="5 source rows and 6 target rows"):
        moments.update(torch.zeros(5, 3), torch.zeros(6, 2))
    with pytest.raises(ShapeError, match="widths 2 → 3 cannot be added"):
        moments.merge(PairMoments(2, 3))


def test_fits_need_two_different_pairs():
    with pytest.raises(FitError, match="at least 2 pairs, got 1"):
        require_fittable(moments_of(torch.ones(1, 3), torch.ones(1, 2)), "a map")
    with pytest.raises(FitError, match="9 equal source activations"):
        require_fittable(moments_of(torch.ones(9, 3), torch.ones(9, 2)), "a map")


def test_moments_of_some_target_coordinates_are_those_of_these_alone():
    x, y = torch.randn(50, 4), torch.randn(50, 6)
    whole, part = PairMoments(4, 6), PairMoments(4, 2)
    whole.update(x, y)
    part.update(x, y[:, 3:5])
    cut = whole.at_target(3, 5)
    for name in ("source_scatter", "cross_scatter", "target_mean", "target_scatter"):
        torch.testing.assert_close(getattr(cut, name), getattr(part, name))
    assert (cut.n, cut.d_source, cut.d_target) == (50, 4, 2)
    with pytest.raises(ShapeError, match="there are 6"):
        whole.at_target(5, 7)


def test_moments_of_some_source_coordinates_are_those_of_their_rows():
    x, y = torch.randn(50, 6), torch.randn(50, 3)
    whole, part = PairMoments(6, 3), PairMoments(2, 3)
    whole.update(x, y)
    part.update(x[:, 3:5], y)
    cut = whole.at_source(3, 5)
    for name in ("source_scatter", "source_mean", "cross_scatter", "target_mean", "target_scatter"):
        torch.testing.assert_close(getattr(cut, name), getattr(part, name))
    assert (cut.n, cut.d_source, cut.d_target) == (50, 2, 3)
    with pytest.raises(ShapeError, match="there are 6"):
        whole.at_source(5, 7)
