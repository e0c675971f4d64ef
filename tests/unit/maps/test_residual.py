from dataclasses import replace

import pytest
import torch
from tests.unit.maps.pairs import independent_noise, random_weight, seeded, without_shape_checks
from torch import Tensor

from isthmus.core.errors import ConfigError, ShapeError
from isthmus.maps import (
    PairedRows,
    ResidualFitter,
    ResidualMap,
    RidgeFitter,
    held_out_quality_on_rows,
    identity_map,
)
from isthmus.maps.residual import residual_settings

QUICK = replace(residual_settings(300), learning_rate=1e-2, hidden_factor=4.0, batch_size=128)


def bent_pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs that are linear for the most part."""
    x, noise = independent_noise(n, 4, 5, seed)
    bend = x.abs() @ random_weight(4, 5, 7)
    return x.float(), (3 * x @ random_weight(4, 5) + bend + 0.1 * noise).float()


def parts() -> tuple[PairedRows, PairedRows, tuple[Tensor, Tensor]]:
    return PairedRows(*bent_pairs(1500, 0)), PairedRows(*bent_pairs(300, 1)), bent_pairs(1000, 2)


def test_it_explains_what_ridge_leaves_over():
    train, selection, held_out = parts()
    plain = RidgeFitter().fit(train.moments, selection.moments)
    made = ResidualFitter(QUICK).fit(train, selection, seeded())
    left = [held_out_quality_on_rows(m, *held_out, 1500).fvu_held_out for m in (plain, made)]
    assert left[1] < 0.3 * left[0]
    assert torch.equal(made.affine.weight, plain.weight)


def test_where_nothing_is_left_over_it_stays_ridge():
    x, y = independent_noise(300, 5, 4, seed=0)
    other = independent_noise(2000, 5, 4, seed=1)
    train, selection = PairedRows(x.float(), y.float()), PairedRows(*(o.float() for o in other))
    plain = RidgeFitter().fit(train.moments, selection.moments)
    made = ResidualFitter(QUICK).fit(train, selection, seeded())
    scores = [
        held_out_quality_on_rows(m, selection.source, selection.target, 300).r2_held_out
        for m in (plain, made)
    ]
    assert scores[1] >= scores[0] - 1e-3


def test_it_is_the_sum_of_its_parts():
    train, selection, (x, _) = parts()
    made = ResidualFitter(replace(QUICK, n_steps=5)).fit(train, selection, seeded())
    assert torch.equal(made(x), made.affine(x) + made.correction(x))
    assert (made.d_source, made.d_target, made.is_affine) == (4, 5, False)


def test_parts_of_other_widths_are_refused():
    train, selection, _ = parts()
    made = ResidualFitter(replace(QUICK, n_steps=2)).fit(train, selection, seeded())
    with without_shape_checks(), pytest.raises(ShapeError, match="cannot be added"):
        ResidualMap(identity_map(3, 5), made.correction)


def test_settings_without_the_relu_are_refused():
    train, selection, _ = parts()
    fitter = ResidualFitter(replace(QUICK, is_nonlinear=False, n_steps=2))
    with pytest.raises(ConfigError, match="with the ReLU"):
        fitter.fit(train, selection, seeded())
