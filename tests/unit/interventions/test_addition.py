import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import NonFiniteError, ShapeError, StrengthError
from isthmus.interventions.addition import Addition


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(-1000, 1000), st.integers(1, 9))
def test_addition_moves_every_position_by_the_scaled_vector(seed, strength, d_model):
    activations, vector = gaussian(2, 3, d_model, seed=seed), gaussian(d_model, seed=seed + 1)
    moved = Addition(vector, strength)(activations) - activations
    torch.testing.assert_close(moved, (strength * vector).expand_as(moved), rtol=1e-9, atol=1e-9)


def test_adding_and_taking_away_gives_back_the_activations():
    activations, vector = gaussian(2, 3, 8), gaussian(8, seed=1)
    there = Addition(vector, 2.5)(activations)
    torch.testing.assert_close(Addition(vector, -2.5)(there), activations)


def test_strength_zero_changes_nothing():
    activations = gaussian(2, 3, 8, dtype=torch.bfloat16)
    assert torch.equal(Addition(gaussian(8), 0.0)(activations), activations)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_addition_keeps_the_type_and_leaves_its_input_alone(dtype):
    activations = gaussian(2, 3, 8, dtype=dtype)
    before = activations.clone()
    assert Addition(gaussian(8, dtype=torch.float32))(activations).dtype == dtype
    assert torch.equal(activations, before)


def test_a_small_vector_is_rounded_once_and_not_before_the_sum():
    activations = torch.full((1, 1, 1), 3.0, dtype=torch.bfloat16)
    vector = torch.tensor([1.0 + 2**-9])
    exact = 3.0 + 2 * (1.0 + 2**-9)
    expected = torch.tensor(exact).to(torch.bfloat16)
    assert Addition(vector, 2.0)(activations).item() == expected.item()


def test_addition_knows_its_width():
    assert Addition(torch.zeros(7)).d_model == 7


def test_broken_vectors_and_strengths_are_refused_when_the_edit_is_made():
    with pytest.raises(ShapeError):
        Addition(torch.zeros(0))
    with pytest.raises(NonFiniteError):
        Addition(torch.tensor([math.nan]))
    with pytest.raises(StrengthError):
        Addition(torch.zeros(2), math.inf)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.integers(2, 9))
def test_an_addition_that_keeps_norms_turns_states_without_stretching_them(seed, strength, d_model):
    activations, vector = gaussian(2, 3, d_model, seed=seed), gaussian(d_model, seed=seed + 1)
    turned = Addition(vector, strength, keeps_norm=True)(activations)
    torch.testing.assert_close(turned.norm(dim=-1), activations.norm(dim=-1))
    plain = Addition(vector, strength)(activations)
    cosine = torch.cosine_similarity(turned, plain, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_sum_of_zero_stays_zero_where_norms_are_kept():
    vector = gaussian(8)
    turned = Addition(vector, -1.0, keeps_norm=True)(vector.expand(1, 2, 8))
    assert torch.equal(turned, torch.zeros(1, 2, 8, dtype=vector.dtype))
