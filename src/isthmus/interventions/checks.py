"""What every edit demands of its vectors and strengths before it exists."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import NonFiniteError, ShapeError, StrengthError

MAX_STRENGTH = 1000.0
"""Largest strength, up or down, that an edit accepts."""

UNIT_TOLERANCE = 1e-4
"""How far from 1 the norm of a unit direction may be."""


def require_vector(name: str, vector: Tensor) -> None:
    """Refuses anything but one finite floating-point vector of at least one coordinate.

    Args:
        name: What the vector is, for the message.
        vector: What was given.

    Raises:
        ShapeError: If it is not one vector of floating-point numbers.
        NonFiniteError: If it holds NaN or infinity.
    """
    if vector.ndim != 1 or vector.numel() == 0 or not vector.is_floating_point():
        raise ShapeError(
            f"{name} has shape {list(vector.shape)} and type {vector.dtype}: "
            "expected one floating-point vector [d_model]"
        )
    if not bool(torch.isfinite(vector).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity: compute it again from finite values")


def require_unit_vector(name: str, vector: Tensor) -> None:
    """Refuses a vector whose norm is not 1, and whatever `require_vector` refuses.

    Args:
        name: What the vector is, for the message.
        vector: What was given.

    Raises:
        ShapeError: If its norm is not 1.
    """
    require_vector(name, vector)
    norm = float(vector.double().norm())
    if abs(norm - 1) > UNIT_TOLERANCE:
        raise ShapeError(f"{name} has norm {norm:.6g}, expected 1: divide it by its norm first")


def require_strength(strength: float) -> None:
    """Refuses a strength that is not a finite number from -1000 to 1000.

    Args:
        strength: What was given.

    Raises:
        StrengthError: If it is NaN, infinite or out of range.
    """
    if not math.isfinite(strength) or abs(strength) > MAX_STRENGTH:
        raise StrengthError(
            f"strength {strength} is not a finite number from {-MAX_STRENGTH:g} to "
            f"{MAX_STRENGTH:g}: 1 is the direction's own length"
        )


def working_dtype(activations: Tensor) -> torch.dtype:
    """Returns the type to compute an edit in: float32, or the activations' own if it is wider."""
    return torch.promote_types(activations.dtype, torch.float32)


def unit_of(name: str, vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """Scales a vector to norm 1; refuses zero and whatever `require_vector` refuses.

    Args:
        name: What the vector is, for the message.
        vector: Any finite vector but zero; left unchanged.

    Returns:
        The unit vector, float32.

    Raises:
        ShapeError: If it is zero and so has no direction.
    """
    require_vector(name, vector)
    norm = float(vector.double().norm())
    if norm == 0:
        raise ShapeError(f"{name} is zero and has no direction: learn it from other prompts")
    return vector.double().div(norm).float()
