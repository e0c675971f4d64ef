"""Overwrites activations with one value."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from isthmus.interventions.checks import require_vector


@dataclass(frozen=True)
class Replacement:
    """Overwrites every position with one value, h := value.

    With the mean activation as its value this is mean ablation: whatever a position said is gone,
    and a method that does no better than this has only destroyed information.

    Attributes:
        value: What stands there afterwards, in activation units.

    Raises:
        ShapeError: If `value` is not one vector.
        NonFiniteError: If `value` holds NaN or infinity.
    """

    value: Float[Tensor, " d_model"]

    def __post_init__(self) -> None:
        require_vector("replacement value", self.value)

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.value.shape[0]

    def __call__(
        self, activations: Float[Tensor, "batch pos {self.d_model}"]
    ) -> Float[Tensor, "batch pos {self.d_model}"]:
        """Returns the value at every position.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same shape and type.
        """
        value = self.value.to(activations.device, activations.dtype)
        return value.expand_as(activations).clone()
