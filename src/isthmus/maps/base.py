"""What every map is, the affine map, and how well a map did on held-out pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import NonFiniteError, ShapeError


@runtime_checkable
class ActivationMap(Protocol):
    """A frozen function from points of the source space to points of the target space."""

    @property
    def d_source(self) -> int:
        """Width of the points it takes."""
        ...

    @property
    def d_target(self) -> int:
        """Width of the points it returns."""
        ...

    @property
    def method(self) -> str:
        """How it was made, as results name it, such as `ridge` or `autoencoder`."""
        ...

    @property
    def is_affine(self) -> bool:
        """Whether it is affine, so that directions have one image wherever they start."""
        ...

    def __call__(
        self, points: Float[Tensor, "*batch d_source"]
    ) -> Float[Tensor, "*batch d_target"]:
        """Returns the image of every point, in float32 or wider; `points` stay unchanged."""
        ...


@dataclass(frozen=True)
class MapQuality:
    """How well a map predicts pairs that it was not fitted on.

    Attributes:
        r2_held_out: 1 - SSE / SST over all target coordinates pooled, SST about the held-out mean;
            at most 1, not above 0 for a map that knows nothing.
        fvu_held_out: Fraction of variance unexplained, SSE / SST = 1 - R².
        n_train: Pairs that the map was fitted on.
        n_held_out: Pairs that it was measured on.
        r2_median_coordinate: Median over the target coordinates that vary of the R² of each by
            itself. A few coordinates of massive activations bring `r2_held_out` close to 1 whatever
            the map does elsewhere; this one they leave alone. None in files of earlier versions.
    """

    r2_held_out: float
    fvu_held_out: float
    n_train: int
    n_held_out: int
    r2_median_coordinate: float | None = None

    def to_json(self) -> dict[str, float]:
        """Returns JSON values, without what is not known."""
        return {name: value for name, value in vars(self).items() if value is not None}


def require_width(points: Tensor, width: int, what: str) -> None:
    """Refuses points of another width.

    Args:
        points: Any tensor with at least one axis.
        width: What its last axis must be.
        what: Who asks, for the message.

    Raises:
        ShapeError: If the last axis has another size.
    """
    given = points.shape[-1] if points.ndim else 0
    if given != width:
        raise ShapeError(
            f"{what} takes vectors of width {width}, got width {given}: "
            "give it activations of the sites that it was fitted on, in the same order"
        )


def require_finite(values: Mapping[str, Tensor], what: str, fix: str) -> None:
    """Refuses tensors that hold NaN or infinity.

    Args:
        values: Tensors by name.
        what: What they belong to, for the message.
        fix: What the user should do.

    Raises:
        NonFiniteError: If one of them is not finite everywhere.
    """
    for name, value in values.items():
        if not torch.isfinite(value).all():
            n_bad = int((~torch.isfinite(value)).sum())
            raise NonFiniteError(f"{what} has {n_bad} NaN or infinite values in {name}: {fix}")


def require_finite_rows(source: Tensor, target: Tensor) -> None:
    """Refuses activations that hold NaN or infinity.

    A sum keeps every NaN and infinity at a tenth of the price of a look at every number.

    Args:
        source: Activations of one side.
        target: Activations of the other.

    Raises:
        NonFiniteError: If one of them is not finite everywhere.
    """
    for side, rows in (("source", source), ("target", target)):
        # A sum may overflow by itself.
        if not bool(torch.isfinite(rows.sum()) or torch.isfinite(rows).all()):
            raise NonFiniteError(
                f"the {side} activations hold NaN or infinity: "
                "load the model in bfloat16 or float32, or drop the texts that cause it"
            )


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map y = (x - source_mean) · weight + target_mean.

    Attributes:
        weight: Linear part, float32.
        source_mean: Point that maps to `target_mean`, float32.
        target_mean: Image of `source_mean`, float32.
        method: How it was made.
        details: Numbers that the fit chose (`strength`, `rank`, `scale`), for provenance.

    Raises:
        ShapeError: If the means do not fit the weight.
        NonFiniteError: If a value is NaN or infinite.
    """

    weight: Float[Tensor, "d_source d_target"]
    source_mean: Float[Tensor, " d_source"]
    target_mean: Float[Tensor, " d_target"]
    method: str
    details: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        means = (*self.source_mean.shape, *self.target_mean.shape)
        if tuple(self.weight.shape) != means:
            raise ShapeError(
                f"a weight of shape {tuple(self.weight.shape)} does not fit means of widths "
                f"{means}: give one mean per side of the weight"
            )
        require_finite(
            {
                "weight": self.weight,
                "source_mean": self.source_mean,
                "target_mean": self.target_mean,
            },
            f"the {self.method} map",
            "check the activations that it was fitted on",
        )

    @property
    def d_source(self) -> int:
        """Width of the points it takes."""
        return self.weight.shape[0]

    @property
    def d_target(self) -> int:
        """Width of the points it returns."""
        return self.weight.shape[1]

    @property
    def is_affine(self) -> bool:
        """Always true."""
        return True

    def __call__(
        self, points: Float[Tensor, "*batch d_source"]
    ) -> Float[Tensor, "*batch d_target"]:
        """Returns the image of every point; refuses points of another width (`ShapeError`).

        Args:
            points: Source activations of any float dtype and on any device; left unchanged.

        Returns:
            Target activations on the same device, float32 or, for float64 points, float64.
        """
        require_width(points, self.d_source, f"the {self.method} map")
        x = wide(points)
        return (x - self.source_mean.to(x)) @ self.weight.to(x) + self.target_mean.to(x)

    def linear(self, vectors: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_target"]:
        """Returns the image of differences of points, v · weight.

        Refuses vectors of another width (`ShapeError`).

        Args:
            vectors: Source directions of any float dtype and on any device; left unchanged.

        Returns:
            Target directions on the same device, float32 or, for float64 vectors, float64.
        """
        require_width(vectors, self.d_source, f"the {self.method} map")
        v = wide(vectors)
        return v @ self.weight.to(v)


def wide(points: Tensor) -> Tensor:
    """Returns the points in float32, or in float64 where they already are."""
    return points.to(torch.promote_types(points.dtype, torch.float32))


def affine_from_fit(
    weight: Float[Tensor, "d_source d_target"],
    source_mean: Float[Tensor, " d_source"],
    target_mean: Float[Tensor, " d_target"],
    method: str,
    details: Mapping[str, float],
) -> AffineMap:
    """Freezes a fit made in float64 as a float32 map on the CPU.

    Args:
        weight: Linear part.
        source_mean: Mean of the source activations.
        target_mean: Mean of the target activations.
        method: How it was made.
        details: Numbers that the fit chose.

    Returns:
        A map that shares no memory with the fit.
    """
    weight, source_mean, target_mean = (
        value.detach().to("cpu", torch.float32, copy=True)
        for value in (weight, source_mean, target_mean)
    )
    return AffineMap(weight, source_mean, target_mean, method, details)
