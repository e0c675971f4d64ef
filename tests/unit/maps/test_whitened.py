import pytest
import torch
from tests.unit.maps.pairs import independent_noise, linear_pairs, moments_of, random_weight
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps import (
    PairedRows,
    PrincipalComponentFitter,
    ProcrustesFitter,
    RidgeFitter,
    StandardisedRidgeFitter,
    TwoWayMoments,
    WhitenedProcrustesFitter,
)
from isthmus.maps.ridge import RidgePath


def two_way(x: Tensor, y: Tensor) -> TwoWayMoments:
    return TwoWayMoments.of(PairedRows(x, y))


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(random_weight(size, size, seed)).Q


def test_standardised_ridge_does_not_depend_on_the_units_of_coordinates():
    x, y = linear_pairs(80, random_weight(6, 4), noise=3.0)
    units, others = torch.logspace(-3, 3, 6).double(), torch.logspace(2, -2, 4).double()
    fitter = StandardisedRidgeFitter((0.1,))
    plain = fitter.fit(*2 * [moments_of(x, y)])
    scaled = fitter.fit(*2 * [moments_of(x * units, y * others)])
    torch.testing.assert_close(scaled(x * units), plain(x) * others, rtol=1e-4, atol=1e-4)
    changed = RidgeFitter((0.1,)).fit(*2 * [moments_of(x * units, y * others)])
    assert float((changed(x * units) / others - plain(x)).abs().max()) > 0.1


def test_a_coordinate_that_never_varies_does_no_harm():
    x, y = linear_pairs(80, random_weight(6, 4))
    x[:, 2], y[:, 1] = 5.0, 7.0
    fitted = StandardisedRidgeFitter().fit(*2 * [moments_of(x, y)])
    torch.testing.assert_close(fitted(x)[:, 1], y[:, 1])


def test_whitening_the_source_before_ridge_only_shortens_another_ridge_map():
    x, y = linear_pairs(60, random_weight(5, 3), noise=1.0)
    train = moments_of(x, y)
    shrinkage, penalty = 0.2, 0.5
    eigenvalues, basis = torch.linalg.eigh(train.source_scatter)
    shrunk = eigenvalues + shrinkage * eigenvalues.mean()
    white = basis / shrunk.sqrt()
    inner = white.T @ train.source_scatter @ white + penalty * torch.eye(5, dtype=x.dtype)
    through = white @ torch.linalg.solve(inner, white.T @ train.cross_scatter)
    strength = shrinkage * penalty / (1 + penalty)
    plain = RidgePath(train).weight(strength)
    torch.testing.assert_close(through, plain / (1 + penalty))


def test_principal_components_choose_the_number_of_directions_that_carry_the_relation():
    n, kept = 400, 3
    x, _ = independent_noise(2 * n, 30, 1, seed=0)
    x[:, :kept] *= 30
    weight = random_weight(30, 4)
    weight[kept:] = 0
    y = x @ weight + 20 * independent_noise(2 * n, 1, 4, seed=1)[1]
    fitter = PrincipalComponentFitter(tuple(range(1, 31)))
    fitted = fitter.fit(moments_of(x[:40], y[:40]), moments_of(x[n:], y[n:]))
    assert fitted.details["rank"] == kept


def test_all_principal_components_are_least_squares():
    x, y = linear_pairs(60, random_weight(5, 3), noise=1.0)
    pairs = moments_of(x, y)
    fitted = PrincipalComponentFitter((99,)).fit(pairs, pairs)
    assert fitted.details["rank"] == 5
    design = torch.cat([x, torch.ones(60, 1, dtype=x.dtype)], 1)
    expected = design @ torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(fitted(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("d_target", [4, 6, 9])
def test_whitened_procrustes_that_is_shrunk_wholly_is_procrustes(d_target: int):
    x, y = linear_pairs(90, random_weight(6, d_target), noise=1.0)
    whitened = WhitenedProcrustesFitter((1.0,)).fit(two_way(x, y), two_way(x, y))
    plain = ProcrustesFitter().fit(moments_of(x, y))
    torch.testing.assert_close(whitened.weight, plain.weight)


def test_whitened_procrustes_recovers_any_invertible_map_that_plain_procrustes_cannot():
    weight = rotation(6, 0) @ torch.diag(torch.logspace(-1, 1, 6).double()) @ rotation(6, 1)
    x, y = linear_pairs(5000, weight)
    whitened = WhitenedProcrustesFitter((1e-9,)).fit(two_way(x, y), two_way(x, y))
    torch.testing.assert_close(whitened.weight.double(), weight, rtol=1e-3, atol=1e-3)
    assert float((ProcrustesFitter().fit(moments_of(x, y)).weight - weight).norm()) > 1.0


def test_whitened_procrustes_chooses_its_shrinkage_on_the_selection_pairs():
    weight = rotation(20, 0)
    x, y = linear_pairs(30, weight, noise=2.0)
    other = two_way(*linear_pairs(3000, weight, noise=2.0, seed=3))
    fitted = WhitenedProcrustesFitter().fit(two_way(x, y), other)
    assert fitted.details["shrinkage"] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StandardisedRidgeFitter(()), "finite and above 0"),
        (lambda: PrincipalComponentFitter((0, 3)), "each 1 or more"),
        (lambda: WhitenedProcrustesFitter((0.0,)), "above 0 and at most 1"),
        (lambda: WhitenedProcrustesFitter(()), "above 0 and at most 1"),
    ],
)
def test_settings_outside_their_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_side_that_never_varies_is_refused():
    x, y = independent_noise(30, 3, 2, seed=0)
    flat = torch.ones_like(y)
    with pytest.raises(FitError, match="Sxy is zero"):
        WhitenedProcrustesFitter().fit(two_way(x, flat), two_way(x, y))
    for fitter in (StandardisedRidgeFitter(), PrincipalComponentFitter()):
        with pytest.raises(FitError, match="equal source activations"):
            fitter.fit(moments_of(torch.ones_like(x), y), moments_of(x, y))
