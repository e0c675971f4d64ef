"""Adds an affine function of the activation itself: a residual map as an edit."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.interventions.checks import require_strength, require_vector, working_dtype


@dataclass(frozen=True, eq=False)
class AffineEdit:
    """Adds an affine function of the activation, h + strength · ((h - m) A B + b).

    A B is the transpose of U Vᵀ: low-rank where A is narrow; without B the map is full. Strength 1
    applies the map, 0 changes nothing. With a map fitted from one model's state to another's minus
    itself, the edit moves the first model's state to the second's.

    Attributes:
        down: A, what is read from the state: one column per direction.
        up: B, what each reading adds; None for a full map, whose A is square.
        mean: m, the state at which only b is added.
        bias: b, in activation units.
        strength: Multiplier of everything that is added, from -1000 to 1000.

    Raises:
        ShapeError: If the parts do not fit together.
        NonFiniteError: If a part holds NaN or infinity.
        StrengthError: If `strength` is not finite or out of range.
    """

    down: Float[Tensor, "d_model rank"]
    up: Float[Tensor, "rank d_model"] | None
    mean: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    strength: float = 1.0

    def __post_init__(self) -> None:
        require_vector("mean of the affine edit", self.mean)
        require_vector("bias of the affine edit", self.bias)
        require_strength(self.strength)
        width, rank = len(self.bias), self.down.shape[-1]
        outer = (width, width) if self.up is None else (width, rank)
        inner = (rank, width) if self.up is None else tuple(self.up.shape)
        if tuple(self.down.shape) != outer or inner != (rank, width) or len(self.mean) != width:
            raise ShapeError(
                f"an affine edit of {list(self.down.shape)} and "
                f"{None if self.up is None else list(self.up.shape)} does not fit a mean of width "
                f"{len(self.mean)} and a bias of width {width}: expected [d_model rank] and "
                "[rank d_model], or [d_model d_model] alone"
            )
        # A sum is NaN or infinite where one of its terms is.
        total = self.down.detach().double().sum()
        if self.up is not None:
            total = total + self.up.detach().double().sum()
        if not bool(total.isfinite()):
            raise NonFiniteError("the affine edit holds NaN or infinity: fit it on finite states")

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.bias.shape[0]

    @property
    def rank(self) -> int:
        """How many directions of the state it reads; the width for a full map."""
        return self.down.shape[1]

    @property
    def n_parameters(self) -> int:
        """How many numbers it takes: A, B and one vector, into which the mean can be folded."""
        return self.down.numel() + (0 if self.up is None else self.up.numel()) + self.d_model

    def change(
        self, activations: Float[Tensor, "*batch {self.d_model}"]
    ) -> Float[Tensor, "*batch {self.d_model}"]:
        """Returns what strength 1 would add, (h - m) A B + b.

        Args:
            activations: States, any floating-point type; left unchanged.

        Returns:
            As many vectors, in float32 or the states' own type if that is wider.
        """
        dtype = working_dtype(activations)
        points = activations.to(dtype)
        change = (points - self.mean.to(points)) @ self.down.to(points)
        if self.up is not None:
            change = change @ self.up.to(points)
        return change + self.bias.to(points)

    def __call__(
        self, activations: Float[Tensor, "batch pos {self.d_model}"]
    ) -> Float[Tensor, "batch pos {self.d_model}"]:
        """Returns `activations` plus the scaled affine function of each.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        wide = activations.to(working_dtype(activations))
        return (wide + self.strength * self.change(activations)).to(activations.dtype)
