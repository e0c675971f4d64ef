"""Edits of all coordinates along a subspace at once; the complement stays as it is.

Both are affine functions of the activation of the subspace's rank, so that an `AffineEdit` does
them, also row by row in one batch.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ShapeError
from isthmus.directions.subspace import require_orthonormal
from isthmus.interventions.affine import AffineEdit


def subspace_ablation(basis: Float[Tensor, "rank d_model"]) -> AffineEdit:
    """Makes the edit that takes a subspace out, h - (h Qᵀ) Q.

    A projection: applied twice it changes nothing more. Rank 1 is `DirectionalAblation`. Directions
    ablated one after the other do the same where they are orthogonal, as the rows of Q are.

    Refuses rows that are not orthonormal (`ShapeError`) and NaN and infinity (`NonFiniteError`).

    Args:
        basis: Q, orthonormal rows; left unchanged.

    Returns:
        The edit.
    """
    return subspace_coordinates(basis, torch.zeros_like(basis[..., 0]))


def subspace_coordinates(
    basis: Float[Tensor, "rank d_model"],
    coordinates: Float[Tensor, " coordinate"],
    strength: float = 1.0,
) -> AffineEdit:
    """Makes the edit that moves coordinates to given values, h + strength · (c - h Qᵀ) Q.

    Strength 1 sets the coordinates to c, 0 changes nothing, in between interpolates. Rank 1 is
    `SetCoordinate`.

    Refuses NaN and infinity (`NonFiniteError`) and a strength that is not finite or out of range
    (`StrengthError`).

    Args:
        basis: Q, orthonormal rows; left unchanged.
        coordinates: c, in activation units.
        strength: Fraction of the way to c, from -1000 to 1000.

    Returns:
        The edit.

    Raises:
        ShapeError: If the rows are not orthonormal, or not as many as coordinates.
    """
    require_orthonormal("the basis of an edited subspace", basis)
    if tuple(coordinates.shape) != (len(basis),):
        raise ShapeError(
            f"coordinates of shape {list(coordinates.shape)} for a subspace of rank {len(basis)}: "
            "give one per basis vector"
        )
    return AffineEdit(
        down=-basis.mT,
        up=basis,
        mean=torch.zeros_like(basis[0]),
        bias=coordinates.to(basis) @ basis,
        strength=strength,
    )
