import math

import pytest
import torch

from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.interventions.replacement import Replacement


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_position_holds_the_value_whatever_was_there(dtype):
    value = torch.tensor([1.0, -2.0, 0.5])
    for fill in (0.0, 7.0, math.inf):
        replaced = Replacement(value)(torch.full((2, 4, 3), fill, dtype=dtype))
        assert replaced.dtype == dtype
        assert torch.equal(replaced, value.to(dtype).expand(2, 4, 3))


def test_writing_into_the_result_changes_neither_the_value_nor_the_input():
    value, activations = torch.ones(3), torch.zeros(2, 4, 3)
    Replacement(value)(activations).fill_(9.0)
    assert torch.equal(value, torch.ones(3))
    assert torch.equal(activations, torch.zeros(2, 4, 3))


def test_replacement_knows_its_width():
    assert Replacement(torch.zeros(7)).d_model == 7


def test_broken_values_are_refused_when_the_edit_is_made():
    with pytest.raises(ShapeError):
        Replacement(torch.zeros(0))
    with pytest.raises(NonFiniteError):
        Replacement(torch.tensor([math.inf]))
