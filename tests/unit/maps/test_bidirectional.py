import pytest
import torch
from tests.unit.maps.pairs import independent_noise, linear_pairs, random_weight
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps import AffineMap, BidirectionalFitter, PairedRows, RidgeFitter, TwoWayMoments


def two_way(x: Tensor, y: Tensor) -> TwoWayMoments:
    return TwoWayMoments.of(PairedRows(x, y))


def away_from_home(there: AffineMap, back: AffineMap, x: Tensor) -> float:
    return float((back(there(x)) - x).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("d_target", [5, 8])
def test_without_a_price_on_round_trips_each_way_is_ridge(d_target: int):
    x, y = linear_pairs(300, random_weight(6, d_target), noise=2.0)
    pairs = two_way(x, y)
    made = BidirectionalFitter(round_trip=0.0).fit_both(pairs, pairs)
    for fitted, moments in ((made.forward, pairs.there), (made.backward, pairs.back)):
        plain = RidgeFitter().fit(moments, moments)
        torch.testing.assert_close(fitted.weight, plain.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("d_source", "d_target"), [(6, 6), (9, 4), (4, 9)])
def test_every_sweep_lowers_the_objective(d_source: int, d_target: int):
    pairs = two_way(*linear_pairs(200, random_weight(d_source, d_target), noise=2.0))
    made = BidirectionalFitter(tolerance=0.0, n_sweeps=8).fit_both(pairs, pairs)
    falls = [a - b for a, b in zip(made.objective, made.objective[1:], strict=False)]
    assert min(falls) >= -1e-9
    assert falls[0] > 1e-3


def test_each_half_is_where_the_gradient_vanishes():
    x, y = linear_pairs(100, random_weight(5, 4), noise=1.0)
    pairs = two_way(x, y)
    fitter = BidirectionalFitter(strengths=(0.1,), tolerance=0.0, n_sweeps=2000)
    made = fitter.fit_both(pairs, pairs)
    there = made.forward.weight.double().requires_grad_()
    back = made.backward.weight.double().requires_grad_()
    dx, dy = x - x.mean(0), y - y.mean(0)
    size_x, size_y = dx.square().sum(), dy.square().sum()
    loss = (dx @ there - dy).square().sum() / size_y + (dy @ back - dx).square().sum() / size_x
    loss = loss + (dx @ there @ back - dx).square().sum() / size_x
    loss = loss + (dy @ back @ there - dy).square().sum() / size_y
    loss = loss + 0.1 / 5 * there.square().sum() * size_x / size_y
    loss = loss + 0.1 / 4 * back.square().sum() * size_y / size_x
    for gradient, at in zip(torch.autograd.grad(loss, (there, back)), (there, back), strict=True):
        assert float((gradient * at.detach().abs()).abs().max()) < 1e-5


def test_a_price_on_round_trips_brings_points_home():
    x, y = linear_pairs(300, random_weight(6, 6), noise=3.0)
    pairs = two_way(x, y)
    free, priced = (BidirectionalFitter(round_trip=a).fit_both(pairs, pairs) for a in (0.0, 3.0))
    home, lost = (away_from_home(m.forward, m.backward, x) for m in (priced, free))
    assert home < 0.5 * lost


def test_maps_without_noise_are_each_others_inverse():
    weight = random_weight(5, 5)
    x, y = linear_pairs(200, weight)
    made = BidirectionalFitter().fit_both(two_way(x, y), two_way(x, y))
    torch.testing.assert_close(made.forward.weight.double(), weight, rtol=1e-3, atol=1e-3)
    assert away_from_home(made.forward, made.backward, x) < 1e-6


def test_the_units_of_either_space_do_not_matter():
    x, y = linear_pairs(200, random_weight(5, 4), noise=2.0)
    plain = BidirectionalFitter().fit(two_way(x, y), two_way(x, y))
    scaled = BidirectionalFitter().fit(two_way(x, 75 * y), two_way(x, 75 * y))
    torch.testing.assert_close(scaled.weight / 75, plain.weight, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="round_trip -1"):
        BidirectionalFitter(round_trip=-1.0)
    with pytest.raises(ConfigError, match="sweeps at least 1"):
        BidirectionalFitter(n_sweeps=0)
    x, y = independent_noise(20, 3, 2, seed=0)
    with pytest.raises(FitError, match="equal source activations"):
        BidirectionalFitter().fit(two_way(x, torch.ones_like(y)), two_way(x, y))
