"""Second moments of paired activations, streamed: all that a closed-form map needs.

1. `PairMoments.update` adds a batch of pairs: its means and centred products, in float64.
2. Two groups of pairs combine exactly (Chan's parallel update), so that nothing is lost when the
   activations lie far from zero, and no row is kept.
3. The correction of that update has rank one: it is one more row of the batch, and the product of
   both is added in place. Of the symmetric Sxx only blocks on and above the diagonal are computed.
4. Both sums lie side by side, so that a block of Sxx and a narrow Sxy take one product.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError, ShapeError
from isthmus.maps.base import require_finite_rows


class _Pieces(NamedTuple):
    """How many rows a product takes, which bounds the float64 copy, and columns of Sxx a block."""

    n_rows: int
    n_columns: int


# Narrow blocks leave out more of Sxx; a processor's products are as fast with them.
_ON_PROCESSOR, _ELSEWHERE = _Pieces(1024, 128), _Pieces(4096, 512)
_NARROW = 512  # a product with so few columns is slow by itself


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
        target_scatter: Diagonal of Syy, Σ (y - ȳ)² per coordinate, `[d_target]`.
    """

    n: int
    source_mean: Float[Tensor, " d_source"]
    target_mean: Float[Tensor, " d_target"]
    target_scatter: Float[Tensor, " d_target"]
    _sums: Float[Tensor, "d_source both"]
    _upper: Float[Tensor, "d_source d_source"]
    _cross: Float[Tensor, "d_source d_target"]
    _is_shared: bool
    _is_mirrored: bool

    def __init__(self, d_source: int, d_target: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.n = 0
        self.source_mean = zeros(d_source)
        self.target_mean = zeros(d_target)
        self.target_scatter = zeros(d_target)
        self._hold(zeros(d_source, d_source + d_target))
        # Below the blocks on its diagonal the first is stale until somebody looks at it.
        self._is_mirrored = True

    @classmethod
    def of_sums(
        cls,
        n: int,
        means: tuple[Float[Tensor, " d_source"], Float[Tensor, " d_target"]],
        scatters: tuple[
            Float[Tensor, "d_source d_source"],
            Float[Tensor, "d_source d_target"],
            Float[Tensor, " d_target"],
        ],
    ) -> "PairMoments":
        """Returns moments of sums that are known already; later updates leave them unchanged.

        Args:
            n: Pairs.
            means: Of the source and of the target activations, float64.
            scatters: Sxx, Sxy and the diagonal of Syy, float64.

        Returns:
            Moments that share memory with the sums.
        """
        moments = object.__new__(cls)
        moments.n, moments._is_shared, moments._is_mirrored = n, True, True
        moments.source_mean, moments.target_mean = means
        moments._upper, moments._cross, moments.target_scatter = scatters
        return moments

    @property
    def source_scatter(self) -> Float[Tensor, "d_source d_source"]:
        """Sxx = Σ (x - x̄)(x - x̄)ᵀ; later updates leave what was returned unchanged."""
        if not self._is_mirrored:
            for rows in self._blocks():
                self._upper[rows.stop :, rows] = self._upper[rows, rows.stop :].T
        self._is_shared = self._is_mirrored = True
        return self._upper

    @property
    def cross_scatter(self) -> Float[Tensor, "d_source d_target"]:
        """Sxy = Σ (x - x̄)(y - ȳ)ᵀ; later updates leave what was returned unchanged."""
        self._is_shared = True
        return self._cross

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
        return self._cut(slice(None), slice(start, stop))

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
        return self._cut(slice(start, stop), slice(None))

    def _cut(self, source: slice, target: slice) -> "PairMoments":
        return PairMoments.of_sums(
            self.n,
            (self.source_mean[source], self.target_mean[target]),
            (
                self.source_scatter[source, source],
                self.cross_scatter[source, target],
                self.target_scatter[target],
            ),
        )

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
        return PairMoments.of_sums(
            self.n,
            (self.source_mean / source_scale, self.target_mean / target_scale),
            (
                self.source_scatter / source_scale / source_scale[:, None],
                self.cross_scatter / source_scale[:, None] / target_scale,
                self.target_scatter / target_scale.square(),
            ),
        )

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
        require_finite_rows(source, target)
        if not len(source):
            return
        self._own()
        # One copy serves all pieces: fresh memory for each would cost as much as filling it.
        n_rows = self._pieces.n_rows
        held = self._sums.new_empty(min(len(source), n_rows) + 1, self.d_source + self.d_target)
        pieces = zip(source.split(n_rows), target.split(n_rows), strict=True)
        for source_rows, target_rows in pieces:
            self._add(source_rows, target_rows, held[: len(source_rows) + 1])

    def _add(self, source: Tensor, target: Tensor, held: Tensor) -> None:
        """Adds a few pairs: S + Σ (x - m)(y - m')ᵀ + w (m - x̄)(m' - ȳ)ᵀ for the batch's means m."""
        n, total = len(source), self.n + len(source)
        x, y = held.split([self.d_source, self.d_target], dim=1)
        means = []
        for rows, copy, mean in (
            (source, x, self.source_mean),
            (target, y, self.target_mean),
        ):
            copy[:n] = rows.detach()
            means.append(copy[:n].mean(0))
            copy[:n] -= means[-1]
            copy[n] = (means[-1] - mean) * (self.n * n / total) ** 0.5
        self._is_mirrored = False
        last = None if self.d_target <= _NARROW else self.d_source
        for block in self._blocks():
            right = slice(block.start, last)
            self._sums[block, right].addmm_(x[:, block].T, held[:, right])
        if last is not None:
            self._cross.addmm_(x.T, y)
        self.target_scatter = self.target_scatter + torch.linalg.vector_norm(y, dim=0).square()
        self.source_mean = self.source_mean + (means[0] - self.source_mean) * (n / total)
        self.target_mean = self.target_mean + (means[1] - self.target_mean) * (n / total)
        self.n = total

    def _own(self) -> None:
        """Takes copies of sums that others may hold, for they are about to change in place."""
        if self._is_shared:
            self._hold(torch.cat([self._upper, self._cross], dim=1))

    def _hold(self, sums: Tensor) -> None:
        """Makes Sxx and Sxy the two parts of a tensor that nobody else holds."""
        self._sums, self._is_shared = sums, False
        self._upper, self._cross = sums.split([self.d_source, self.d_target], dim=1)

    @property
    def _pieces(self) -> _Pieces:
        return _ON_PROCESSOR if self.source_mean.device.type == "cpu" else _ELSEWHERE

    def _blocks(self) -> Iterator[slice]:
        """Yields blocks of Sxx, of rows and columns alike."""
        n = self._pieces.n_columns
        for start in range(0, self.d_source, n):
            yield slice(start, min(start + n, self.d_source))

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
        self._own()
        self._upper.add_(other.source_scatter.to(device))
        self._upper.addr_(source_shift, source_shift, alpha=weight)
        self._cross.add_(other.cross_scatter.to(device))
        self._cross.addr_(source_shift, target_shift, alpha=weight)
        self.target_scatter = (
            self.target_scatter + other.target_scatter.to(device) + weight * target_shift.square()
        )
        self.source_mean = self.source_mean + source_shift * (other.n / total)
        self.target_mean = self.target_mean + target_shift * (other.n / total)
        self.n = total

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
