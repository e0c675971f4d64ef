"""What massive activations do to maps: rows and coordinates far larger than all others."""

from collections.abc import Callable

import pytest
import torch
from tests.unit.maps.pairs import linear_pairs, random_weight, seeded
from torch import Tensor

from isthmus.maps import (
    ClippedRidgeFitter,
    HuberRidgeFitter,
    PairedRows,
    ProcrustesFitter,
    RidgeFitter,
    StandardisedRidgeFitter,
    TrimmedRidgeFitter,
    TwoWayMoments,
    WhitenedProcrustesFitter,
)
from isthmus.maps.base import ActivationMap

Fit = Callable[[PairedRows, PairedRows], ActivationMap]

FITS: dict[str, Fit] = {
    "ridge": lambda a, b: RidgeFitter().fit(a.moments, b.moments),
    "ridge_standardised": lambda a, b: StandardisedRidgeFitter().fit(a.moments, b.moments),
    "ridge_clipped": ClippedRidgeFitter().fit,
    "ridge_trimmed": TrimmedRidgeFitter().fit,
    "ridge_huber": HuberRidgeFitter().fit,
    "procrustes": lambda a, _: ProcrustesFitter().fit(a.moments),
    "procrustes_whitened": lambda a, b: WhitenedProcrustesFitter().fit(
        TwoWayMoments.of(a), TwoWayMoments.of(b)
    ),
}


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    return linear_pairs(n, torch.linalg.qr(random_weight(16, 16)).Q, noise=0.3, seed=seed)


def ordinary_r2(fitted: ActivationMap, kept: slice) -> float:
    """Score on rows without outliers, on the coordinates that are none."""
    x, y = rows(2000, seed=99)
    error = (fitted(x) - y)[:, kept].square().sum()
    return 1 - float(error / (y - y.mean(0))[:, kept].square().sum())


def with_a_massive_coordinate(n: int, seed: int) -> PairedRows:
    """One coordinate on each side varies a thousand times as much as the others, unrelatedly."""
    x, y = rows(n, seed)
    generator = seeded(seed + 50)
    x[:, 0] += 1000 * torch.randn(n, generator=generator, dtype=x.dtype)
    y[:, 0] += 1000 * torch.randn(n, generator=generator, dtype=x.dtype)
    return PairedRows(x, y)


def with_massive_rows(n: int, seed: int) -> PairedRows:
    """One row in fifty, as first tokens, lies far out on both sides, unrelatedly."""
    x, y = rows(n, seed)
    generator = seeded(seed + 50)
    for side in (x, y):
        side[::50] += 300 * torch.randn(side[::50].shape, generator=generator, dtype=x.dtype)
    return PairedRows(x, y)


def with_massive_targets(n: int, seed: int) -> PairedRows:
    """One row in fifty lies far out in the target alone."""
    x, y = rows(n, seed)
    y[::50] += 300 * torch.randn(y[::50].shape, generator=seeded(seed + 50), dtype=y.dtype)
    return PairedRows(x, y)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("procrustes", -0.1, 0.1), ("ridge", -0.1, 0.1), ("ridge_standardised", 0.8, 1.0)],
)
def test_a_massive_coordinate_decides_what_counts_squared_errors_in_plain_units(name, low, high):
    made = FITS[name](with_a_massive_coordinate(2000, 0), with_a_massive_coordinate(500, 1))
    assert low <= ordinary_r2(made, slice(1, None)) <= high


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("procrustes", -2.0, -0.5),
        ("ridge", -2.0, -0.5),
        ("ridge_standardised", -2.0, -0.5),
        # Errors alone do not show a row that pulls the map to itself from a huge source.
        ("ridge_huber", -0.5, 0.1),
        ("ridge_clipped", 0.85, 1.0),
        ("ridge_trimmed", 0.9, 1.0),
    ],
)
def test_massive_rows_decide_what_does_not_draw_them_back(name, low, high):
    made = FITS[name](with_massive_rows(2000, 0), with_massive_rows(500, 1))
    assert low <= ordinary_r2(made, slice(None)) <= high


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("ridge", -2.0, 0.0),
        ("ridge_huber", 0.85, 1.0),
        ("ridge_clipped", 0.85, 1.0),
        ("ridge_trimmed", 0.9, 1.0),
    ],
)
def test_massive_targets_are_what_hubers_loss_is_for(name, low, high):
    made = FITS[name](with_massive_targets(2000, 0), with_massive_targets(500, 1))
    assert low <= ordinary_r2(made, slice(None)) <= high


def with_sinks(n: int, seed: int) -> PairedRows:
    """One row in twenty is an attention sink: one huge coordinate on either side, else little."""
    x, y = rows(n, seed)
    height = 1 + 0.02 * torch.randn(len(x[::20]), generator=seeded(seed + 50), dtype=x.dtype)
    for side, coordinate in ((x, 3), (y, 5)):
        side[::20] *= 0.1
        side[::20, coordinate] += 1000 * height
    return PairedRows(x, y)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("ridge", 0.6, 0.89),
        ("ridge_standardised", 0.6, 0.89),
        ("ridge_huber", 0.6, 0.89),
        # Drawn back, a sink still ties its coordinate of the source to its own of the target.
        ("ridge_clipped", 0.6, 0.9),
        ("ridge_trimmed", 0.91, 1.0),
    ],
)
def test_attention_sinks_cost_ordinary_rows_something_unless_they_are_left_out(name, low, high):
    made = FITS[name](with_sinks(2000, 0), with_sinks(500, 1))
    assert low <= ordinary_r2(made, slice(None)) <= high
    if name == "ridge_trimmed":
        assert made.details["left_out"] == pytest.approx(0.05)


def test_where_nothing_is_massive_trimming_is_ridge():
    pairs = [PairedRows(*rows(n, seed)) for seed, n in enumerate((2000, 500))]
    plain, trimmed = FITS["ridge"](*pairs), FITS["ridge_trimmed"](*pairs)
    assert torch.equal(plain.weight, trimmed.weight)
    assert trimmed.details["left_out"] == 0
