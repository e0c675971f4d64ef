import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tests.unit.maps.pairs import independent_noise, linear_pairs, moments_of, random_weight, seeded

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps import RidgeFitter
from isthmus.maps.contrasts import difference_moments, shuffled_differences, with_differences


def few_that_decide() -> tuple[torch.Tensor, ...]:
    """States of one law, and differences of another in a direction that states hardly show."""
    x, y = linear_pairs(400, random_weight(8, 5), noise=1.0)
    x[:, 0] *= 1e-2
    dx = torch.zeros(30, 8, dtype=x.dtype)
    dx[:, 0] = torch.randn(30, generator=seeded(1), dtype=x.dtype)
    return x, y, dx, dx @ random_weight(8, 5, seed=2)


def test_the_fit_is_that_of_states_and_weighted_differences_stacked():
    x, y, dx, dy = few_that_decide()
    ratio, strength = 7.0, 1e-3
    both = with_differences(moments_of(x, y), difference_moments(dx, dy), ratio)
    ours = RidgeFitter((strength,)).fit(both, both)
    x_mean, y_mean = x.mean(0), y.mean(0)
    weight = ratio * float((y - y_mean).square().sum()) / float(2 * dy.square().sum())
    rows = torch.cat([x - x_mean, dx, -dx]).numpy()
    wanted = torch.cat([y - y_mean, dy, -dy]).numpy()
    weights = np.array([1.0] * len(x) + [weight] * 2 * len(dx))
    penalty = strength * float((rows**2 * weights[:, None]).sum()) / rows.shape[1]
    theirs = Ridge(alpha=penalty, fit_intercept=False).fit(rows, wanted, sample_weight=weights)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.target_mean.double(), y_mean, rtol=1e-5, atol=1e-5)


def test_differences_that_states_hardly_show_arrive():
    x, y, dx, dy = few_that_decide()
    states = moments_of(x, y)
    plain = RidgeFitter().fit(states, states)
    both = with_differences(states, difference_moments(dx, dy))
    contrast = RidgeFitter().fit(both, both)
    errors = [float((m.linear(dx.float()) - dy).square().sum()) for m in (plain, contrast)]
    assert errors[1] < 0.05 * errors[0]


def test_shuffled_differences_do_not_even_tell_their_mean():
    dy = few_that_decide()[3] + 5.0
    mixed = shuffled_differences(dy.repeat(40, 1), seeded())
    assert mixed.shape == (1200, 5)
    assert mixed.mean(0).abs().max() < 0.1 * dy.mean(0).abs().max()
    torch.testing.assert_close(mixed.square().sum(), 40 * dy.square().sum())


def test_differences_of_both_signs_have_no_mean():
    _, _, dx, dy = few_that_decide()
    moments = difference_moments(dx + 3, dy - 2)
    torch.testing.assert_close(moments.source_mean, torch.zeros(8, dtype=torch.float64))
    torch.testing.assert_close(moments.target_mean, torch.zeros(5, dtype=torch.float64))


def test_what_makes_no_difference_is_refused():
    x, y = independent_noise(20, 3, 2, 0)
    nothing = difference_moments(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(FitError, match="do not differ"):
        with_differences(moments_of(x, y), nothing)
    some = difference_moments(x, y)
    with pytest.raises(ConfigError, match="above 0"):
        with_differences(moments_of(x, y), some, 0.0)
