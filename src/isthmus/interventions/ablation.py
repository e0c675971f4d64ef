"""Removes a direction."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from isthmus.interventions.checks import require_unit_vector, working_dtype


@dataclass(frozen=True)
class DirectionalAblation:
    """Projects activations onto the complement of a unit direction, h - (h·r) r.

    A projection: applied twice it changes nothing more. Every component orthogonal to r stays.

    Source: Arditi et al. 2024, arXiv:2406.11717, section 2.4.

    Attributes:
        unit_direction: r, of norm 1.

    Raises:
        ShapeError: If `unit_direction` is not one vector of norm 1.
        NonFiniteError: If it holds NaN or infinity.
    """

    unit_direction: Float[Tensor, " d_model"]

    def __post_init__(self) -> None:
        require_unit_vector("direction to ablate", self.unit_direction)

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.unit_direction.shape[0]

    def __call__(
        self, activations: Float[Tensor, "batch pos {self.d_model}"]
    ) -> Float[Tensor, "batch pos {self.d_model}"]:
        """Returns `activations` without their component along the direction.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        # In bfloat16 the product would leave a tenth of a percent of a large component behind.
        dtype = working_dtype(activations)
        points = activations.to(dtype)
        direction = self.unit_direction.to(activations.device, dtype)
        along = (points @ direction)[..., None]
        return (points - along * direction).to(activations.dtype)
