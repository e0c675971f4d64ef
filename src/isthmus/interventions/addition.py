"""Adds a steering vector."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.interventions.checks import require_strength, require_vector, working_dtype


@dataclass(frozen=True)
class Addition:
    """Adds one vector at every position, h + strength · v.

    With `keeps_norm` the sum is scaled back to the length that the state had: a rotation towards
    v, (h + strength · v) ‖h‖ / ‖h + strength · v‖. A sum of zero stays zero.

    Source: Turner et al. 2023, arXiv:2308.10248.

    Attributes:
        vector: v, in activation units.
        strength: Multiplier in units of v's own norm, from -1000 to 1000; 0 changes nothing.
        keeps_norm: Whether every state keeps its length.

    Raises:
        ShapeError: If `vector` is not one vector.
        NonFiniteError: If `vector` holds NaN or infinity.
        StrengthError: If `strength` is not finite or out of range.
    """

    vector: Float[Tensor, " d_model"]
    strength: float = 1.0
    keeps_norm: bool = False

    def __post_init__(self) -> None:
        require_vector("steering vector", self.vector)
        require_strength(self.strength)

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.vector.shape[0]

    def __call__(
        self, activations: Float[Tensor, "batch pos {self.d_model}"]
    ) -> Float[Tensor, "batch pos {self.d_model}"]:
        """Returns `activations` with the scaled vector added at every position.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        dtype = working_dtype(activations)
        vector = self.vector.to(activations.device, dtype)
        states = activations.to(dtype)
        moved = states + self.strength * vector
        if self.keeps_norm:
            moved = scaled_back(moved, states)
        return moved.to(activations.dtype)


def scaled_back(
    moved: Float[Tensor, "*batch d_model"], states: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Scales states that were moved back to the lengths they had, h' ‖h‖ / ‖h'‖.

    Args:
        moved: h', afterwards.
        states: h, before; same shape and type.

    Returns:
        New tensor; where h' is zero it stays zero.
    """
    length = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
    before = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    scaled: Tensor = moved * (before / length.clamp_min(torch.finfo(moved.dtype).tiny))
    return scaled
