import pytest
import torch
from tests.unit.maps.pairs import independent_noise, linear_pairs, moments_of, random_weight

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps import GcvRidgeFitter, RidgeFitter
from isthmus.maps.gcv import gcv_scores
from isthmus.maps.ridge import STRENGTHS


def test_the_score_is_that_of_the_hat_matrix_with_its_intercept():
    x, y = linear_pairs(40, random_weight(7, 3), noise=2.0)
    train = moments_of(x, y)
    penalty = 0.3 * float(train.source_scatter.diagonal().mean())
    centred = x - x.mean(0)
    inverse = torch.linalg.inv(centred.T @ centred + penalty * torch.eye(7, dtype=x.dtype))
    hat = centred @ inverse @ centred.T + torch.full((40, 40), 1 / 40, dtype=x.dtype)
    expected = 40 * (y - hat @ y).square().sum() / (40 - hat.trace()) ** 2
    torch.testing.assert_close(gcv_scores(train, (0.3,))[0], expected)


def test_without_other_pairs_it_comes_close_to_what_other_pairs_choose():
    weight = random_weight(40, 3)
    x, y = linear_pairs(60, weight, noise=20.0, seed=1)
    other = moments_of(*linear_pairs(4000, weight, noise=20.0, seed=2))
    by_itself = GcvRidgeFitter().fit(moments_of(x, y)).details["strength"]
    by_others = RidgeFitter().fit(moments_of(x, y), other).details["strength"]
    assert abs(STRENGTHS.index(by_itself) - STRENGTHS.index(by_others)) <= 1
    assert by_itself > 1e-2


def test_a_map_without_noise_needs_no_strength():
    weight = random_weight(6, 4)
    fitted = GcvRidgeFitter().fit(moments_of(*linear_pairs(200, weight)))
    assert fitted.details["strength"] == 1e-6
    assert fitted.method == "ridge_gcv"
    torch.testing.assert_close(fitted.weight.double(), weight, rtol=1e-4, atol=1e-4)


def test_more_coordinates_than_pairs_are_no_excuse():
    x, y = independent_noise(10, 30, 4, seed=0)
    assert torch.isfinite(gcv_scores(moments_of(x, y), STRENGTHS)).all()
    assert GcvRidgeFitter().fit(moments_of(x, y)).details["strength"] >= 1.0


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="finite and above 0"):
        GcvRidgeFitter((0.0,))
    with pytest.raises(FitError, match="at least 2 pairs"):
        GcvRidgeFitter().fit(moments_of(*independent_noise(1, 3, 2, seed=0)))
