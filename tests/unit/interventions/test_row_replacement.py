import math

import pytest
import torch

from isthmus.core.edits import BatchEdit
from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.core.sites import Site
from isthmus.interventions.row_replacement import RowReplacement, take_earlier_rows


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[one == "x" for one in row] for row in rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_stand_where_the_mask_says_and_nothing_else_changes(dtype):
    rows, where = torch.arange(24.0).reshape(2, 3, 4), mask("xx-", "--x")
    before = torch.full((2, 3, 4), -7.0, dtype=dtype)
    after = RowReplacement(rows, where)(before)
    assert after.dtype == dtype
    assert torch.equal(after[where], rows.to(dtype)[where])
    assert torch.equal(after[~where], before[~where])
    assert torch.equal(before, torch.full((2, 3, 4), -7.0, dtype=dtype))


def test_putting_in_what_was_there_changes_nothing():
    states = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(RowReplacement(states, mask("xxxxx", "x-x-x"))(states), states)


def test_rows_that_are_not_used_may_be_anything():
    rows = torch.zeros(1, 2, 3)
    rows[0, 1] = math.nan
    assert torch.equal(RowReplacement(rows, mask("x-"))(torch.ones(1, 2, 3))[0, 1], torch.ones(3))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        RowReplacement(rows, mask("xx"))


def test_a_part_of_the_batch_is_refused_since_the_rows_would_be_those_of_other_tokens():
    edit = RowReplacement(torch.zeros(1, 3, 4), mask("xxx"))
    with pytest.raises(ShapeError, match="without a cache"):
        edit(torch.zeros(1, 1, 4))


def test_placed_it_acts_at_its_mask_and_at_nothing_that_is_generated_later():
    where = mask("x-", "-x")
    placed = RowReplacement(torch.zeros(2, 2, 3), where).at(Site(1))
    assert placed.site == Site(1)
    assert torch.equal(placed.given, where)
    assert placed.generated.tolist() == [False, False]
    assert placed.edit.d_model == 3


def test_a_gap_takes_the_nearest_earlier_row_and_the_beginning_stays_without():
    rows = torch.arange(6.0)[:, None].expand(6, 2)
    filled, has_row = take_earlier_rows(rows, mask("-x--x-")[0])
    assert has_row.tolist() == [False, True, True, True, True, True]
    assert filled[1:, 0].tolist() == [1.0, 1.0, 1.0, 4.0, 4.0]


def test_without_any_row_nothing_is_filled():
    _, has_row = take_earlier_rows(torch.zeros(3, 2), mask("---")[0])
    assert not has_row.any()
    assert take_earlier_rows(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool))[0].shape == (0, 2)


def test_from_a_column_on_it_does_what_it_does_there_in_the_whole_batch():
    rows, x = torch.randn(3, 7, 4), torch.randn(3, 7, 4)
    whole = RowReplacement(rows, torch.rand(3, 7) < 0.5)
    assert isinstance(whole, BatchEdit)
    assert torch.equal(whole.from_column(2)(x[:, 2:]), whole(x)[:, 2:])
