import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.interventions.ablation import DirectionalAblation
from isthmus.interventions.checks import unit_of


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def direction(d_model, seed=1):
    return unit_of("direction", gaussian(d_model, seed=seed))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_nothing_along_the_direction_is_left(seed, d_model):
    unit = direction(d_model, seed)
    left = DirectionalAblation(unit)(gaussian(2, 3, d_model, seed=seed + 1)) @ unit
    torch.testing.assert_close(left, torch.zeros(2, 3), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_ablation_is_the_projection_onto_the_complement(seed):
    unit, activations = direction(6, seed), gaussian(2, 3, 6, seed=seed + 1)
    projection = torch.eye(6) - torch.outer(unit, unit)
    torch.testing.assert_close(
        DirectionalAblation(unit)(activations), activations @ projection, atol=1e-5, rtol=1e-5
    )


def test_ablating_twice_is_ablating_once():
    ablate, activations = DirectionalAblation(direction(16)), gaussian(2, 3, 16)
    once = ablate(activations)
    torch.testing.assert_close(ablate(once), once)


def test_activations_orthogonal_to_the_direction_stay_as_they_are():
    unit = torch.tensor([1.0, 0.0, 0.0])
    activations = gaussian(2, 3, 3)
    activations[..., 0] = 0
    assert torch.equal(DirectionalAblation(unit)(activations), activations)


def test_in_bfloat16_a_large_component_is_removed_to_its_rounding():
    unit = direction(512)
    activations = (gaussian(4, 8, 512) + 30 * 512**0.5 * unit).to(torch.bfloat16)
    along = (activations.double() @ unit.double()).abs()
    left = (DirectionalAblation(unit)(activations).double() @ unit.double()).abs()
    assert float((left / along).max()) < 5e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ablation_keeps_the_type_and_leaves_its_input_alone(dtype):
    activations = gaussian(2, 3, 8, dtype=dtype)
    before = activations.clone()
    assert DirectionalAblation(direction(8))(activations).dtype == dtype
    assert torch.equal(activations, before)


def test_ablation_knows_its_width():
    assert DirectionalAblation(direction(7)).d_model == 7


def test_broken_directions_are_refused_when_the_edit_is_made():
    with pytest.raises(ShapeError, match="expected 1"):
        DirectionalAblation(torch.tensor([3.0, 4.0]))
    with pytest.raises(NonFiniteError):
        DirectionalAblation(torch.tensor([1.0, math.nan]))
