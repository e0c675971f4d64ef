"""Paired activations themselves, in memory or read when they are used."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError, ShapeError
from isthmus.maps.moments import PairMoments

MOST_IN_MEMORY = 2**30
"""Most activations, in numbers, that a fit may gather from a stream of pairs; 4 GiB."""

_ROWS_AT_ONCE = 8192


@runtime_checkable
class Pairs(Protocol):
    """Paired activations of one target site, wherever they lie."""

    @property
    def n_rows(self) -> int:
        """How many pairs there are."""
        ...

    @property
    def d_source(self) -> int:
        """Width of the source activations."""
        ...

    @property
    def d_target(self) -> int:
        """Width of the target activations."""
        ...

    @property
    def n_per_text(self) -> tuple[int, ...]:
        """How many consecutive pairs each text gave; empty when nobody kept count."""
        ...

    def batches(self, n_rows: int = _ROWS_AT_ONCE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all pairs in order, so many at once."""
        ...

    def shuffled(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields every pair once, in random order, so many at once."""
        ...

    def columns(self, start: int, stop: int) -> "Pairs":
        """Returns the same pairs with some of the source coordinates."""
        ...


@dataclass(frozen=True)
class PairedRows:
    """Paired activations of one target site, in memory.

    Attributes:
        source: Source activations, the sites concatenated.
        target: Target activations, row by row.
        n_per_text: How many consecutive rows each text gave; empty when nobody kept count.

    Raises:
        ShapeError: If the texts do not add up to the rows.
    """

    source: Float[Tensor, "row d_source"]
    target: Float[Tensor, "row d_target"]
    n_per_text: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.n_per_text and sum(self.n_per_text) != len(self.source):
            raise ShapeError(
                f"texts of {sum(self.n_per_text)} rows in all do not make {len(self.source)} rows: "
                "count the rows of every text"
            )

    @property
    def n_rows(self) -> int:
        """How many pairs there are."""
        return len(self.source)

    @property
    def d_source(self) -> int:
        """Width of the source activations."""
        return self.source.shape[1]

    @property
    def d_target(self) -> int:
        """Width of the target activations."""
        return self.target.shape[1]

    @property
    def moments(self) -> PairMoments:
        """Moments of these pairs."""
        return moments_of(self)

    def batches(self, n_rows: int = _ROWS_AT_ONCE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all pairs in order.

        Args:
            n_rows: Pairs at once; the last batch may have fewer.

        Returns:
            Source and target rows, as views.
        """
        return zip(self.source.split(n_rows), self.target.split(n_rows), strict=True)

    def shuffled(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields every pair once; every order is as likely as any other.

        Args:
            batch_size: Pairs at once; the last batch may have fewer.
            generator: Source of randomness.

        Yields:
            tuple[Tensor, Tensor]: Source rows and their target rows.
        """
        order = torch.randperm(self.n_rows, generator=generator, device=generator.device)
        for batch in order.split(batch_size):
            yield (
                self.source[batch.to(self.source.device)],
                self.target[batch.to(self.target.device)],
            )

    def columns(self, start: int, stop: int) -> "PairedRows":
        """Returns the same pairs with some of the source coordinates.

        Args:
            start: First coordinate.
            stop: One past the last.

        Returns:
            Pairs that share memory with these.
        """
        return PairedRows(self.source[:, start:stop], self.target, self.n_per_text)


def moments_of(pairs: Pairs) -> PairMoments:
    """Returns the moments of pairs; no more than a batch of them is in memory at a time."""
    moments = PairMoments(pairs.d_source, pairs.d_target)
    for source, target in pairs.batches():
        moments.update(source, target)
    return moments


def in_memory(pairs: Pairs, what: str) -> PairedRows:
    """Returns pairs as rows in memory.

    Args:
        pairs: Any pairs; rows in memory are returned as they are.
        what: What needs them, for the message.

    Returns:
        The rows.

    Raises:
        FitError: If they would be more than `MOST_IN_MEMORY` numbers.
    """
    if isinstance(pairs, PairedRows):
        return pairs
    n_numbers = pairs.n_rows * (pairs.d_source + pairs.d_target)
    if n_numbers > MOST_IN_MEMORY:
        raise FitError(
            f"{what} needs its pairs in memory: {pairs.n_rows} of widths {pairs.d_source} and "
            f"{pairs.d_target} are {n_numbers / 2**28:.1f} GiB, at most "
            f"{MOST_IN_MEMORY / 2**28:.1f} are taken: use a map that streams, such as ridge, or "
            "fewer texts or sites"
        )
    source = torch.empty(pairs.n_rows, pairs.d_source)
    target = torch.empty(pairs.n_rows, pairs.d_target)
    start = 0
    for x, y in pairs.batches():
        source[start : start + len(x)], target[start : start + len(x)] = x, y
        start += len(x)
    return PairedRows(source, target, pairs.n_per_text)
