import math

import pytest
import torch

from isthmus.core.errors import NonFiniteError, ShapeError, StrengthError
from isthmus.interventions.checks import (
    require_strength,
    require_unit_vector,
    require_vector,
    unit_of,
    working_dtype,
)


@pytest.mark.parametrize(
    "vector",
    [torch.zeros(2, 3), torch.zeros(()), torch.zeros(0), torch.zeros(3, dtype=torch.long)],
    ids=["matrix", "number", "empty", "integers"],
)
def test_what_is_not_one_vector_of_floats_is_refused(vector):
    with pytest.raises(ShapeError, match="direction of mine has shape"):
        require_vector("direction of mine", vector)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_vector_with_a_number_that_is_not_finite_is_refused(bad):
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        require_vector("direction", torch.tensor([1.0, bad]))


@pytest.mark.parametrize("norm", [0.0, 0.999, 1.001, 5.0])
def test_a_direction_that_is_not_of_norm_one_is_refused_with_its_norm(norm):
    with pytest.raises(ShapeError, match=f"norm {norm:.6g}, expected 1"):
        require_unit_vector("direction", torch.tensor([norm, 0.0]))


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 1000.5, -1000.5])
def test_a_strength_that_is_not_finite_or_out_of_range_is_refused(strength):
    with pytest.raises(StrengthError, match="-1000 to 1000"):
        require_strength(strength)


@pytest.mark.parametrize("strength", [0.0, -1000.0, 1000.0, 0.5])
def test_a_strength_within_its_range_is_accepted(strength):
    require_strength(strength)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_unit_vector_has_norm_one_and_the_same_direction_at_any_scale(scale):
    vector = torch.tensor([3.0, -4.0]) * scale
    torch.testing.assert_close(unit_of("direction", vector), torch.tensor([0.6, -0.8]))


def test_a_zero_vector_has_no_direction():
    with pytest.raises(ShapeError, match="is zero"):
        unit_of("direction", torch.zeros(4))


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_edits_compute_in_at_least_single_precision(given, computed):
    assert working_dtype(torch.zeros(1, dtype=given)) == computed
