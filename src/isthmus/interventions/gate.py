"""An edit that acts only where a state lies above a threshold along a direction."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import Edit, depends_on_shape
from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.interventions.checks import require_unit_vector, working_dtype


@dataclass(frozen=True)
class GatedEdit:
    """Edits the positions whose state the gate reads as positive, h where h·u ≤ t, else edit(h).

    It decides anew at every position on the state that reaches it; whoever asks once per prompt
    gives rows an intervention or none (`PerRow`).

    Source: Lee et al. 2024, arXiv 2409.05907, for steering under a condition.

    Attributes:
        edit: What is done where the gate is open.
        unit_direction: u, of norm 1.
        threshold: t, in activation units.

    Raises:
        ShapeError: If `unit_direction` is not one vector of norm 1 and of the edit's width.
        NonFiniteError: If `unit_direction` or `threshold` holds NaN or infinity.
    """

    edit: Edit
    unit_direction: Float[Tensor, " d_model"]
    threshold: float

    def __post_init__(self) -> None:
        require_unit_vector("direction of the gate", self.unit_direction)
        if len(self.unit_direction) != self.edit.d_model:
            raise ShapeError(
                f"a gate of width {len(self.unit_direction)} before an edit of width "
                f"{self.edit.d_model}: learn or carry the probe to the model that is edited"
            )
        if not math.isfinite(self.threshold):
            raise NonFiniteError(
                f"threshold {self.threshold} is not finite: expected a length in activation units"
            )

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.unit_direction.shape[0]

    @property
    def depends_on_shape(self) -> bool:
        """Whether what the edit itself does depends on how many positions a pass computes."""
        return depends_on_shape(self.edit)

    def __call__(
        self, activations: Float[Tensor, "batch pos {self.d_model}"]
    ) -> Float[Tensor, "batch pos {self.d_model}"]:
        """Returns `activations`, edited where the gate is open and bit for bit the same elsewhere.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        dtype = working_dtype(activations)
        unit = self.unit_direction.to(activations.device, dtype)
        is_open = activations.to(dtype) @ unit > self.threshold
        return torch.where(is_open[..., None], self.edit(activations), activations)
