import math

import pytest
import torch

from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.interventions.noise import GaussianNoise


@pytest.mark.parametrize("d_model", [1, 2, 3, 64])
def test_the_noise_has_the_expected_length(d_model):
    noise = GaussianNoise(d_model, norm=3.0, seed=0)(torch.zeros(200, 200, d_model))
    lengths = noise.norm(dim=-1)
    standard_error = float(lengths.std()) / 200
    assert abs(float(lengths.mean()) - 3.0) < 5 * standard_error


def test_positions_and_rows_get_independent_noise():
    noise = GaussianNoise(256, norm=1.0, seed=0)(torch.zeros(5, 5, 256)).reshape(25, 256)
    unit = noise / noise.norm(dim=-1, keepdim=True)
    cosines = unit @ unit.T - torch.eye(25)
    assert float(cosines.abs().max()) < 6 / math.sqrt(256)


def test_the_same_seed_gives_the_same_noise_whatever_was_drawn_before():
    edit, activations = GaussianNoise(8, norm=1.0, seed=3), torch.zeros(2, 3, 8)
    first = edit(activations)
    edit(torch.zeros(5, 1, 8))
    torch.randn(7)
    assert torch.equal(edit(activations), first)
    assert torch.equal(GaussianNoise(8, norm=1.0, seed=3)(activations), first)
    assert not torch.equal(GaussianNoise(8, norm=1.0, seed=4)(activations), first)


def test_drawing_noise_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    GaussianNoise(8, norm=1.0, seed=3)(torch.zeros(2, 3, 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_noise_does_not_depend_on_the_activations():
    edit = GaussianNoise(8, norm=1.0, seed=3)
    activations = torch.full((2, 3, 8), 5.0, dtype=torch.float64)
    torch.testing.assert_close(edit(activations) - activations, edit(torch.zeros_like(activations)))


def test_norm_zero_changes_nothing():
    activations = torch.ones(2, 3, 8, dtype=torch.bfloat16)
    edited = GaussianNoise(8, norm=0.0, seed=3)(activations)
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited, activations)


@pytest.mark.parametrize("norm", [-1.0, math.nan, math.inf])
def test_a_norm_that_is_no_length_is_refused(norm):
    with pytest.raises(NonFiniteError, match="noise of norm"):
        GaussianNoise(8, norm=norm, seed=0)


def test_noise_without_a_width_is_refused():
    with pytest.raises(ShapeError):
        GaussianNoise(0, norm=1.0, seed=0)
