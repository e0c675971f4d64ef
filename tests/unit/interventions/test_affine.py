import dataclasses

import pytest
import torch

from isthmus.core.errors import NonFiniteError, ShapeError, StrengthError
from isthmus.interventions.affine import AffineEdit

D, RANK = 6, 2


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(strength: float = 1.0) -> AffineEdit:
    return AffineEdit(drawn(D, RANK), drawn(RANK, D, seed=1), drawn(D), drawn(D, seed=2), strength)


def test_a_low_rank_edit_adds_its_affine_function_of_the_state():
    edit, x = low_rank(), drawn(3, 4, D, seed=3)
    expected = x + (x - edit.mean) @ (edit.down @ edit.up) + edit.bias
    torch.testing.assert_close(edit(x), expected)


def test_a_full_edit_equals_the_low_rank_one_with_the_same_product():
    edit, x = low_rank(), drawn(3, 4, D, seed=3)
    full = AffineEdit(edit.down @ edit.up, None, edit.mean, edit.bias)
    torch.testing.assert_close(full(x), edit(x))
    assert (edit.rank, full.rank) == (RANK, D)


def test_strength_scales_all_that_is_added_and_zero_keeps_the_bits():
    x = drawn(3, 4, D, seed=3)
    torch.testing.assert_close(low_rank(0.5)(x) - x, 0.5 * (low_rank()(x) - x))
    assert torch.equal(low_rank(0.0)(x), x)


def test_the_input_stays_and_the_type_is_kept():
    x = drawn(2, 3, D).bfloat16()
    before = x.clone()
    assert low_rank()(x).dtype == torch.bfloat16
    assert torch.equal(x, before)


def test_parameters_are_counted_with_the_mean_folded_into_the_bias():
    edit, x = low_rank(), drawn(2, 3, D, seed=4)
    folded = AffineEdit(
        edit.down, edit.up, torch.zeros(D), edit.bias - edit.mean @ edit.down @ edit.up
    )
    torch.testing.assert_close(folded(x), edit(x))
    assert edit.n_parameters == 2 * D * RANK + D
    assert AffineEdit(drawn(D, D), None, drawn(D), drawn(D)).n_parameters == D * D + D


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="does not fit"):
        AffineEdit(drawn(D, RANK), None, drawn(D), drawn(D))


def test_numbers_that_are_not_finite_are_refused():
    edit = low_rank()
    with pytest.raises(NonFiniteError):
        dataclasses.replace(edit, down=torch.full_like(edit.down, float("nan")))
    with pytest.raises(StrengthError):
        dataclasses.replace(edit, strength=float("inf"))
