from dataclasses import replace

import pytest
import torch
from tests.unit.maps.pairs import (
    independent_noise,
    linear_pairs,
    random_weight,
    seeded,
    without_shape_checks,
)
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError, NonFiniteError, ShapeError
from isthmus.maps import (
    KernelMap,
    KernelRidgeFitter,
    PairedRows,
    RidgeFitter,
    held_out_quality_on_rows,
)


def curved_pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x, noise = independent_noise(n, 3, 2, seed)
    return 5 * x + 100, torch.stack([x.sin().sum(1), x[:, 0].abs()], 1) + 0.05 * noise


def a_map(n: int = 300) -> KernelMap:
    train, selection = (PairedRows(*curved_pairs(n, seed)) for seed in (0, 1))
    return KernelRidgeFitter(n_landmarks=100).fit(train, selection, seeded())


def test_it_fits_what_no_affine_map_can():
    train, selection = (PairedRows(*curved_pairs(1000, seed)) for seed in (0, 1))
    held_out = curved_pairs(1000, seed=2)
    curved = KernelRidgeFitter(n_landmarks=300).fit(train, selection, seeded())
    straight = RidgeFitter().fit(train.moments, selection.moments)
    scores = [held_out_quality_on_rows(m, *held_out, 1000).r2_held_out for m in (curved, straight)]
    assert scores[0] > 0.95
    assert scores[1] < 0.8


def test_more_landmarks_come_closer_to_kernel_ridge_itself():
    train, selection = (PairedRows(*curved_pairs(200, seed)) for seed in (0, 1))
    x, _ = curved_pairs(200, seed=2)
    made = {
        n: KernelRidgeFitter(n, (1.0,), (1e-3,)).fit(train, selection, seeded())(x)
        for n in (10, 50, 200)
    }
    assert (made[50] - made[200]).norm() < 0.5 * (made[10] - made[200]).norm()


def test_it_does_not_depend_on_the_units_of_coordinates():
    x, y = curved_pairs(200, seed=0)
    units = torch.tensor([1e-3, 1.0, 1e3], dtype=x.dtype)
    fitter = KernelRidgeFitter(50, (1.0,), (1e-2,))
    plain = fitter.fit(PairedRows(x, y), PairedRows(x, y), seeded())
    scaled = fitter.fit(PairedRows(x * units, y), PairedRows(x * units, y), seeded())
    torch.testing.assert_close(scaled(x * units), plain(x))


def test_far_from_all_landmarks_it_returns_its_offset():
    fitted = a_map()
    far = torch.full((2, 3), 1e6, dtype=torch.float64)
    torch.testing.assert_close(fitted(far), fitted.offset.expand(2, 2))
    assert not fitted.is_affine


def test_points_keep_their_shape_and_type():
    fitted = a_map()
    x = torch.randn(2, 5, 3, generator=seeded())
    assert fitted(x).shape == (2, 5, 2)
    assert fitted(x).dtype == torch.float32
    torch.testing.assert_close(fitted(x)[1, 2], fitted(x[1, 2]))
    assert fitted(x.half()).dtype == torch.float32


def test_the_landmarks_are_those_of_the_generator():
    rows = PairedRows(*curved_pairs(100, 0))
    made = [KernelRidgeFitter(20).fit(rows, rows, seeded(seed)) for seed in (0, 0, 1)]
    assert torch.equal(made[0].landmarks, made[1].landmarks)
    assert not torch.equal(made[0].landmarks, made[2].landmarks)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        KernelRidgeFitter(n_landmarks=1)
    with pytest.raises(ConfigError, match="above 0"):
        KernelRidgeFitter(widths=(0.0,))
    one = PairedRows(torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(FitError, match="at least 2 pairs, got 1"):
        KernelRidgeFitter().fit(one, one, seeded())
    targets = linear_pairs(400, random_weight(3, 2))[1].float()
    for value in (1.0, 0.1, 12345.678):
        flat = PairedRows(torch.full((400, 3), value), targets)
        with pytest.raises(FitError, match="equal source activations"):
            KernelRidgeFitter().fit(flat, flat, seeded())


def test_parts_that_do_not_fit_together_are_refused():
    fitted = a_map()
    with without_shape_checks(), pytest.raises(ShapeError, match="one coefficient per landmark"):
        replace(fitted, coefficients=fitted.coefficients[:-1])
    with pytest.raises(NonFiniteError, match="offset"):
        replace(fitted, offset=fitted.offset * torch.nan)
    with pytest.raises(ShapeError, match="width 3, got width 4"):
        fitted(torch.zeros(2, 4))
