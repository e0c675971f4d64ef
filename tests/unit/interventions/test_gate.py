import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.interventions import Addition, DirectionalAblation, GatedEdit, SetCoordinate
from isthmus.interventions.checks import unit_of
from isthmus.interventions.row_edits import EachRow

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


UNIT = unit_of("direction", gaussian(12, seed=1))
EDITS = (
    Addition(gaussian(12, seed=2), 3.0),
    DirectionalAblation(UNIT),
    SetCoordinate(unit_of("other", gaussian(12, seed=3)), 5.0),
)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(DTYPES), st.sampled_from(EDITS), st.floats(-3, 3))
def test_where_the_gate_is_open_it_is_the_edit_and_elsewhere_the_input_bit_for_bit(
    seed, dtype, edit, threshold
):
    activations = gaussian(2, 7, 12, seed=seed, dtype=dtype)
    before = activations.clone()
    edited = GatedEdit(edit, UNIT, threshold)(activations)
    wide = torch.promote_types(dtype, torch.float32)
    is_open = activations.to(wide) @ UNIT.to(wide) > threshold
    assert edited.dtype == dtype
    assert torch.equal(edited[is_open], edit(activations)[is_open])
    assert torch.equal(edited[~is_open], activations[~is_open])
    assert torch.equal(activations, before)


def test_a_state_on_the_threshold_is_left_alone():
    along = torch.zeros(12).index_fill_(0, torch.tensor([4]), 1.0)
    states = torch.stack([along * c for c in (1.0, 2.0, 3.0)])[None]
    gated = GatedEdit(Addition(gaussian(12), 1.0), along, 2.0)
    assert (gated(states) != states).any(-1).tolist() == [[False, False, True]]


def test_what_a_closed_position_would_become_does_not_matter():
    class Bad:
        d_model = 12

        def __call__(self, activations):
            return torch.full_like(activations, math.nan)

    assert torch.isfinite(GatedEdit(Bad(), UNIT, 1e6)(gaussian(1, 3, 12))).all()


def test_it_says_of_its_edit_whether_the_shape_of_a_pass_matters():
    by_row = EachRow((EDITS[0], None))
    assert GatedEdit(by_row, UNIT, 0.0).depends_on_shape == by_row.depends_on_shape
    assert GatedEdit(EDITS[0], UNIT, 0.0).d_model == 12


@pytest.mark.parametrize(
    ("unit", "threshold", "error"),
    [
        (2 * UNIT, 0.0, ShapeError),
        (unit_of("wide", gaussian(13)), 0.0, ShapeError),
        (UNIT * math.nan, 0.0, NonFiniteError),
        (UNIT, math.inf, NonFiniteError),
    ],
)
def test_a_gate_that_cannot_decide_is_refused_when_it_is_made(unit, threshold, error):
    with pytest.raises(error):
        GatedEdit(EDITS[0], unit, threshold)
