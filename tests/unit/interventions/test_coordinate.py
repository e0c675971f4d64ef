import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import NonFiniteError, ShapeError, StrengthError
from isthmus.interventions.ablation import DirectionalAblation
from isthmus.interventions.checks import unit_of
from isthmus.interventions.coordinate import SetCoordinate


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


UNIT = unit_of("direction", gaussian(12, seed=1))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(-50, 50))
def test_at_strength_one_the_coordinate_is_the_one_asked_for(seed, coordinate):
    moved = SetCoordinate(UNIT, coordinate)(gaussian(2, 3, 12, seed=seed))
    torch.testing.assert_close(moved @ UNIT, torch.full((2, 3), coordinate), atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_strength_is_the_fraction_of_the_way(seed, strength):
    activations = gaussian(2, 3, 12, seed=seed)
    before, after = activations @ UNIT, SetCoordinate(UNIT, 4.0, strength)(activations) @ UNIT
    torch.testing.assert_close(
        after, (1 - strength) * before + strength * 4.0, atol=1e-4, rtol=1e-4
    )


def test_what_is_orthogonal_to_the_direction_stays():
    activations = gaussian(2, 3, 12)
    rest = DirectionalAblation(UNIT)
    torch.testing.assert_close(rest(SetCoordinate(UNIT, 9.0)(activations)), rest(activations))


def test_coordinate_zero_is_directional_ablation():
    activations = gaussian(2, 3, 12)
    torch.testing.assert_close(
        SetCoordinate(UNIT, 0.0)(activations), DirectionalAblation(UNIT)(activations)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_setting_a_coordinate_keeps_the_type_and_leaves_its_input_alone(dtype):
    activations = gaussian(2, 3, 12, dtype=dtype)
    before = activations.clone()
    assert SetCoordinate(UNIT, 1.0)(activations).dtype == dtype
    assert torch.equal(activations, before)


def test_broken_values_are_refused_when_the_edit_is_made():
    with pytest.raises(ShapeError):
        SetCoordinate(2 * UNIT, 1.0)
    with pytest.raises(NonFiniteError, match="coordinate nan"):
        SetCoordinate(UNIT, math.nan)
    with pytest.raises(StrengthError):
        SetCoordinate(UNIT, 1.0, 2000.0)
