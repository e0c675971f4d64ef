"""Second moments of paired activations, streamed: all that a closed-form map needs.

1. `PairMoments.update` adds a batch of pairs: its means and centred products, in float64.
2. Two groups of pairs combine exactly (Chan's parallel update), so that nothing is lost when the
   activations lie far from zero, and no row is kept.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError, NonFiniteError, ShapeError

_ROWS_AT_ONCE = 8192  # bounds the float64 copy of a batch: 8,192 rows of width 4,096 are 256 MiB


class PairMoments:
    """Count, means and centred products of a stream of (source, target) pairs, in float64.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances".

    Args:
        d_source: Width of the source activations.
        d_target: Width of the target activations.
        device: Where the sums live and the products are computed.

    Attributes:
        n: Pairs seen.
        source_mean: Mean x̄ of the source activations, `[d_source]`.
        target_mean: Mean ȳ of the target activations, `[d_target]`.
        source_scatter: Sxx = Σ (x - x̄)(x - x̄)ᵀ, `[d_source d_source]`.
        cross_scatter: Sxy = Σ (x - x̄)(y - ȳ)ᵀ, `[d_source d_target]`.
        target_scatter: Diagonal of Syy, Σ (y - ȳ)² per coordinate, `[d_target]`.
    """

    n: int
    source_mean: Float[Tensor, " d_source"]
    target_mean: Float[Tensor, " d_target"]
    source_scatter: Float[Tensor, "d_source d_source"]
    cross_scatter: Float[Tensor, "d_source d_target"]
    target_scatter: Float[Tensor, " d_target"]

    def __init__(self, d_source: int, d_target: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.n = 0
        self.source_mean = zeros(d_source)
        self.target_mean = zeros(d_target)
        self.source_scatter = zeros(d_source, d_source)
        self.cross_scatter = zeros(d_source, d_target)
        self.target_scatter = zeros(d_target)

    @property
    def d_source(self) -> int:
        """Width of the source activations."""
        return self.source_mean.shape[0]

    @property
    def d_target(self) -> int:
        """Width of the target activations."""
        return self.target_mean.shape[0]

    @property
    def target_total(self) -> Float[Tensor, ""]:
        """Tr Syy = Σ |y - ȳ|², a scalar tensor."""
        return self.target_scatter.sum()

    def at_target(self, start: int, stop: int) -> "PairMoments":
        """Returns the moments of some target coordinates, as several maps read one source.

        Args:
            start: First coordinate.
            stop: One past the last.

        Returns:
            Moments that share memory with these.

        Raises:
            ShapeError: If there are no such coordinates.
        """
        if not 0 <= start < stop <= self.d_target:
            raise ShapeError(f"target coordinates {start} to {stop}: there are {self.d_target}")
        part = object.__new__(PairMoments)
        part.n = self.n
        part.source_mean, part.source_scatter = self.source_mean, self.source_scatter
        part.target_mean = self.target_mean[start:stop]
        part.cross_scatter = self.cross_scatter[:, start:stop]
        part.target_scatter = self.target_scatter[start:stop]
        return part

    def at_source(self, start: int, stop: int) -> "PairMoments":
        """Returns the moments of some source coordinates, as maps from one of several sites need.

        Args:
            start: First coordinate.
            stop: One past the last.

        Returns:
            Moments that share memory with these.

        Raises:
            ShapeError: If there are no such coordinates.
        """
        if not 0 <= start < stop <= self.d_source:
            raise ShapeError(f"source coordinates {start} to {stop}: there are {self.d_source}")
        part = object.__new__(PairMoments)
        part.n = self.n
        part.source_mean = self.source_mean[start:stop]
        part.source_scatter = self.source_scatter[start:stop, start:stop]
        part.cross_scatter = self.cross_scatter[start:stop]
        part.target_mean, part.target_scatter = self.target_mean, self.target_scatter
        return part

    def scaled(
        self, source_scale: Float[Tensor, " d_source"], target_scale: Float[Tensor, " d_target"]
    ) -> "PairMoments":
        """Returns the moments of the same pairs with every coordinate divided by its scale.

        Args:
            source_scale: Positive divisors of the source coordinates.
            target_scale: Positive divisors of the target coordinates.

        Returns:
            Moments that share no memory with these.
        """
        other = PairMoments(self.d_source, self.d_target, self.source_mean.device)
        other.n = self.n
        other.source_mean = self.source_mean / source_scale
        other.target_mean = self.target_mean / target_scale
        other.source_scatter = self.source_scatter / source_scale / source_scale[:, None]
        other.cross_scatter = self.cross_scatter / source_scale[:, None] / target_scale
        other.target_scatter = self.target_scatter / target_scale.square()
        return other

    def update(
        self,
        source: Float[Tensor, "row d_source"],
        target: Float[Tensor, "row d_target"],
    ) -> None:
        """Adds pairs: row i of `source` belongs to row i of `target`.

        Refuses other widths and unequal numbers of rows (`ShapeError`).

        Args:
            source: Source activations of any float dtype and on any device; left unchanged.
            target: Target activations, as many rows; left unchanged.

        Raises:
            NonFiniteError: If an activation is NaN or infinite; nothing is added then.
        """
        self._require_fit(source, target)
        for side, rows in (("source", source), ("target", target)):
            if not torch.isfinite(rows).all():
                raise NonFiniteError(
                    f"the {side} activations hold NaN or infinity: "
                    "load the model in bfloat16 or float32, or drop the texts that cause it"
                )
        pieces = zip(source.split(_ROWS_AT_ONCE), target.split(_ROWS_AT_ONCE), strict=True)
        for source_rows, target_rows in pieces:
            if len(source_rows):
                self.merge(self._of_rows(source_rows, target_rows))

    def merge(self, other: "PairMoments") -> None:
        """Adds the pairs that another instance has seen; `other` stays unchanged.

        Args:
            other: Moments of the same widths.

        Raises:
            ShapeError: If the widths differ.
        """
        if (self.d_source, self.d_target) != (other.d_source, other.d_target):
            raise ShapeError(
                f"moments of widths {other.d_source} → {other.d_target} cannot be added to moments "
                f"of widths {self.d_source} → {self.d_target}: read both from the same sites"
            )
        if other.n == 0:
            return
        total = self.n + other.n
        device = self.source_mean.device
        source_shift = other.source_mean.to(device) - self.source_mean
        target_shift = other.target_mean.to(device) - self.target_mean
        weight = self.n * other.n / total
        self.source_scatter = (
            self.source_scatter
            + other.source_scatter.to(device)
            + weight * torch.outer(source_shift, source_shift)
        )
        self.cross_scatter = (
            self.cross_scatter
            + other.cross_scatter.to(device)
            + weight * torch.outer(source_shift, target_shift)
        )
        self.target_scatter = (
            self.target_scatter + other.target_scatter.to(device) + weight * target_shift.square()
        )
        self.source_mean = self.source_mean + source_shift * (other.n / total)
        self.target_mean = self.target_mean + target_shift * (other.n / total)
        self.n = total

    def _of_rows(self, source: Tensor, target: Tensor) -> "PairMoments":
        device = self.source_mean.device
        # Copies of its own, so that centring needs no third one.
        x = source.detach().to(device, torch.float64, copy=True)
        y = target.detach().to(device, torch.float64, copy=True)
        batch = PairMoments(self.d_source, self.d_target, device)
        batch.n = len(x)
        batch.source_mean, batch.target_mean = x.mean(0), y.mean(0)
        x -= batch.source_mean
        y -= batch.target_mean
        batch.source_scatter, batch.cross_scatter = x.T @ x, x.T @ y
        batch.target_scatter = y.square().sum(0)
        return batch

    def _require_fit(self, source: Tensor, target: Tensor) -> None:
        given = (source.shape[1], target.shape[1])
        if given != (self.d_source, self.d_target):
            raise ShapeError(
                f"pairs of widths {given[0]} → {given[1]} do not fit moments of widths "
                f"{self.d_source} → {self.d_target}: concatenate the source sites in a fixed order"
            )
        if len(source) != len(target):
            raise ShapeError(
                f"{len(source)} source rows and {len(target)} target rows are not pairs: "
                "align the tokens first"
            )


def require_fittable(moments: PairMoments, what: str) -> None:
    """Refuses moments from which no map can be learned.

    Args:
        moments: Moments of the training pairs.
        what: What is being fitted, for the message.

    Raises:
        FitError: If there are fewer than two pairs or the source activations never vary.
    """
    if moments.n < 2:
        raise FitError(f"{what} needs at least 2 pairs, got {moments.n}: give it more texts")
    if not bool(moments.source_scatter.diagonal().sum() > 0):
        raise FitError(
            f"{what} was given {moments.n} equal source activations: give it different texts"
        )
