"""Sets how far activations lie along a direction."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import NonFiniteError
from isthmus.interventions.checks import require_strength, require_unit_vector, working_dtype


@dataclass(frozen=True)
class SetCoordinate:
    """Moves the coordinate along a unit direction to a value, h + strength · (c - h·r) r.

    Strength 1 sets the coordinate to c, 0 changes nothing, in between interpolates. Every component
    orthogonal to r stays. With c = 0 and strength 1 it is directional ablation.

    Attributes:
        unit_direction: r, of norm 1.
        coordinate: c, in activation units.
        strength: Fraction of the way to c, from -1000 to 1000.

    Raises:
        ShapeError: If `unit_direction` is not one vector of norm 1.
        NonFiniteError: If `unit_direction` or `coordinate` holds NaN or infinity.
        StrengthError: If `strength` is not finite or out of range.
    """

    unit_direction: Float[Tensor, " d_model"]
    coordinate: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        require_unit_vector("direction of the coordinate", self.unit_direction)
        if not math.isfinite(self.coordinate):
            raise NonFiniteError(
                f"coordinate {self.coordinate} is not finite: expected a length in activation units"
            )
        require_strength(self.strength)

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.unit_direction.shape[0]

    def __call__(
        self, activations: Float[Tensor, "batch pos {self.d_model}"]
    ) -> Float[Tensor, "batch pos {self.d_model}"]:
        """Returns `activations` moved along the direction towards the coordinate.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        dtype = working_dtype(activations)
        points = activations.to(dtype)
        direction = self.unit_direction.to(activations.device, dtype)
        missing = self.strength * (self.coordinate - points @ direction)[..., None]
        return (points + missing * direction).to(activations.dtype)
