import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import NonFiniteError, ShapeError, StrengthError
from isthmus.interventions import (
    DirectionalAblation,
    SetCoordinate,
    subspace_ablation,
    subspace_coordinates,
)


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def basis_of(rank, d_model=12, seed=1):
    return torch.linalg.qr(gaussian(d_model, rank, seed=seed)).Q.mT.contiguous()


seeds, ranks = st.integers(0, 10**6), st.integers(1, 12)


@settings(deadline=None, max_examples=30)
@given(seeds, ranks)
def test_nothing_in_the_subspace_is_left_and_the_complement_stays(seed, rank):
    basis, activations = basis_of(rank, seed=seed), gaussian(2, 3, 12, seed=seed + 1)
    edited = subspace_ablation(basis)(activations)
    torch.testing.assert_close(edited @ basis.mT, torch.zeros(2, 3, rank), atol=1e-5, rtol=0)
    moved = (activations - edited) @ (torch.eye(12) - basis.mT @ basis)
    torch.testing.assert_close(moved, torch.zeros(2, 3, 12), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30)
@given(seeds, ranks)
def test_ablating_twice_is_ablating_once_and_equals_ablating_row_by_row(seed, rank):
    basis, activations = basis_of(rank, seed=seed), gaussian(2, 3, 12, seed=seed + 1)
    ablate = subspace_ablation(basis)
    once = ablate(activations)
    torch.testing.assert_close(ablate(once), once, atol=1e-5, rtol=1e-5)
    by_rows = activations
    for row in basis:
        by_rows = DirectionalAblation(row / row.norm())(by_rows)
    torch.testing.assert_close(by_rows, once, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(seeds, ranks)
def test_any_basis_of_a_subspace_is_the_same_edit(seed, rank):
    basis, activations = basis_of(rank, seed=seed), gaussian(2, 3, 12, seed=seed + 1)
    turned = basis_of(rank, rank, seed=seed + 2) @ basis
    coordinates = gaussian(rank, seed=seed + 3)
    point = coordinates @ basis
    torch.testing.assert_close(
        subspace_coordinates(turned, point @ turned.mT)(activations),
        subspace_coordinates(basis, coordinates)(activations),
        atol=1e-4,
        rtol=1e-4,
    )


@settings(deadline=None, max_examples=30)
@given(seeds, ranks, st.floats(0, 1))
def test_the_strength_is_the_fraction_of_the_way_to_the_coordinates(seed, rank, strength):
    basis, activations = basis_of(rank, seed=seed), gaussian(2, 3, 12, seed=seed + 1)
    wanted = 5 * gaussian(rank, seed=seed + 2)
    before = activations @ basis.mT
    after = subspace_coordinates(basis, wanted, strength)(activations) @ basis.mT
    torch.testing.assert_close(
        after, (1 - strength) * before + strength * wanted, atol=1e-4, rtol=1e-4
    )


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(-50, 50), st.floats(-2, 2))
def test_rank_one_is_the_edit_of_one_direction(seed, coordinate, strength):
    basis, activations = basis_of(1, seed=seed), gaussian(2, 3, 12, seed=seed + 1)
    torch.testing.assert_close(
        subspace_ablation(basis)(activations),
        DirectionalAblation(basis[0])(activations),
        atol=1e-6,
        rtol=1e-6,
    )
    torch.testing.assert_close(
        subspace_coordinates(basis, torch.tensor([coordinate]), strength)(activations),
        SetCoordinate(basis[0], coordinate, strength)(activations),
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_whole_space_set_to_a_point_is_that_point():
    point = gaussian(12, seed=3)
    edited = subspace_coordinates(torch.eye(12), point)(gaussian(2, 3, 12))
    torch.testing.assert_close(edited, point.expand(2, 3, 12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_edits_keep_the_type_and_leave_what_they_are_given_alone(dtype):
    basis, activations, wanted = basis_of(3), gaussian(2, 3, 12, dtype=dtype), gaussian(3)
    given_to_them = [one.clone() for one in (basis, activations, wanted)]
    for edit in (subspace_ablation(basis), subspace_coordinates(basis, wanted)):
        assert edit(activations).dtype == dtype
        assert (edit.d_model, edit.rank) == (12, 3)
    for now, before in zip((basis, activations, wanted), given_to_them, strict=True):
        assert torch.equal(now, before)


def test_in_bfloat16_large_components_are_removed_to_their_rounding():
    basis = basis_of(4, 512)
    activations = (gaussian(4, 8, 512) + 300 * basis.sum(0)).to(torch.bfloat16)
    along = (activations.double() @ basis.double().mT).abs()
    left = (subspace_ablation(basis)(activations).double() @ basis.double().mT).abs()
    assert float((left / along).max()) < 5e-4


def test_broken_parts_are_refused_when_the_edit_is_made():
    with pytest.raises(ShapeError, match="not orthonormal"):
        subspace_ablation(2 * basis_of(2))
    with pytest.raises(ShapeError, match="give one per basis vector"):
        subspace_coordinates(basis_of(2), torch.zeros(3))
    with pytest.raises(NonFiniteError):
        subspace_coordinates(basis_of(2), torch.tensor([0.0, math.nan]))
    with pytest.raises(StrengthError):
        subspace_coordinates(basis_of(2), torch.zeros(2), 2000.0)
