import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.maps.pairs import independent_noise, linear_pairs, moments_of, random_weight

from isthmus.core.errors import ConfigError, FitError, NonFiniteError, ShapeError
from isthmus.maps import PairMoments, RidgeFitter, held_out_quality
from isthmus.maps.quality import fraction_unexplained
from isthmus.maps.ridge import STRENGTHS, RidgePath


@settings(deadline=None, max_examples=25)
@given(d_source=st.integers(1, 12), d_target=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_ridge_map_recovers_a_known_linear_map(d_source: int, d_target: int, seed: int):
    weight = random_weight(d_source, d_target, seed)
    x, y = linear_pairs(400, weight, seed=seed)
    fitted = RidgeFitter().fit(moments_of(x[:200], y[:200]), moments_of(x[200:], y[200:]))
    assert fitted.details["strength"] == 1e-6
    torch.testing.assert_close(fitted.weight.double(), weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fitted(x), y, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(d_source=st.integers(1, 8), d_target=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_a_direction_arrives_as_its_image_when_targets_are_linear_in_sources(
    d_source: int, d_target: int, seed: int
):
    weight = random_weight(d_source, d_target, seed)
    x, _ = independent_noise(300, d_source, 1, seed)
    pairs = moments_of(x, x @ weight)
    direction = random_weight(1, d_source, seed + 1)[0]
    image = RidgeFitter((1e-9,)).fit(pairs, pairs).linear(direction)
    torch.testing.assert_close(image, direction @ weight, rtol=1e-5, atol=1e-5)


def test_strengths_mean_the_same_whatever_the_scale_and_number_of_pairs():
    x, y = linear_pairs(300, random_weight(5, 4), noise=1.0)
    once = RidgePath(moments_of(x, y)).weight(0.3)
    scaled = RidgePath(moments_of(100 * x, 100 * y)).weight(0.3)
    repeated = RidgePath(moments_of(x.repeat(4, 1), y.repeat(4, 1))).weight(0.3)
    torch.testing.assert_close(scaled, once)
    torch.testing.assert_close(repeated, once)


@settings(deadline=None, max_examples=25)
@given(
    d_source=st.integers(1, 9),
    d_target=st.integers(1, 9),
    n=st.integers(2, 30),
    offset=st.floats(-50, 50),
    seed=st.integers(0, 10_000),
)
def test_errors_in_the_basis_of_the_training_pairs_are_those_of_the_weights(
    d_source: int, d_target: int, n: int, offset: float, seed: int
):
    x, y = linear_pairs(60, random_weight(d_source, d_target, seed), noise=0.5, seed=seed)
    train, selection = moments_of(x[:n], y[:n]), moments_of(x[30:] + offset, y[30:] - offset)
    path = RidgePath(train)
    weights = [path.weight(strength) for strength in STRENGTHS]
    means = train.source_mean, train.target_mean
    expected = [fraction_unexplained(weight, *means, selection) for weight in weights]
    found = path.unexplained(STRENGTHS, selection)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=1e-9)


def test_the_strength_is_the_best_on_the_selection_pairs_not_on_the_training_pairs():
    weight = random_weight(40, 3)
    x, y = linear_pairs(50, weight, noise=20.0, seed=1)
    x_other, y_other = linear_pairs(2000, weight, noise=20.0, seed=2)
    train, selection = moments_of(x, y), moments_of(x_other, y_other)
    fitter = RidgeFitter()
    scores = {
        strength: held_out_quality(RidgeFitter((strength,)).fit(train, train), selection, 50)
        for strength in fitter.strengths
    }
    best = max(scores, key=lambda strength: scores[strength].r2_held_out)
    assert fitter.fit(train, selection).details["strength"] == best
    assert best > 1e-2
    assert fitter.fit(train, train).details["strength"] == 1e-6


def test_more_strength_means_a_smaller_map():
    x, y = linear_pairs(100, random_weight(6, 4), noise=1.0)
    path = RidgePath(moments_of(x, y))
    norms = [path.weight(strength).norm().item() for strength in (1e-3, 1e-1, 1e1, 1e3)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.01 * norms[0]


def test_ridge_is_defined_with_fewer_pairs_than_coordinates():
    x, y = independent_noise(5, 30, 4, seed=0)
    fitted = RidgeFitter((1e-6,)).fit(moments_of(x, y), moments_of(x, y))
    torch.testing.assert_close(fitted(x), y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strengths", [(), (0.0,), (-1.0, 1.0), (math.nan,), (math.inf,)])
def test_strengths_outside_their_range_are_refused(strengths):
    with pytest.raises(ConfigError, match="finite and above 0"):
        RidgeFitter(strengths)


def test_fits_without_enough_data_are_refused():
    x, y = independent_noise(50, 3, 2, seed=0)
    good, single = moments_of(x, y), moments_of(x[:1], y[:1])
    with pytest.raises(FitError, match="a ridge map needs at least 2 pairs, got 1"):
        RidgeFitter().fit(single, good)
    with pytest.raises(FitError, match="at least 2 held-out pairs"):
        RidgeFitter().fit(good, single)
    with pytest.raises(ShapeError, match="3 → 2 cannot be scored on pairs of widths 2 → 3"):
        RidgeFitter().fit(good, moments_of(y, x))


def test_moments_that_overflowed_are_refused():
    train = PairMoments(2, 2)
    train.update(*independent_noise(10, 2, 2, seed=0))
    train.target_mean = train.target_mean * 1e60
    with pytest.raises(NonFiniteError, match="ridge map"):
        RidgeFitter().fit(train, train)
