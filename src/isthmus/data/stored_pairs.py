"""Pairs of a store, read when they are used: in order, or shuffled in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.core.errors import ShapeError
from isthmus.data.store_format import Role

ReadRows = Callable[[Tensor, Role], Tensor]
"""Reads rows by their index in the store, of the source or of the target."""

MOST_SHUFFLED = 2**26
"""Most activations, in numbers, that are in memory to be shuffled; 256 MiB."""

ROWS_TOGETHER = 64
"""Rows that stay together where a store is too large to be shuffled row by row."""


@dataclass(frozen=True)
class StoredPairs:
    """Pairs of some texts and sites of a store.

    Attributes:
        read: Reads rows of the store.
        ranges: First and one past the last row of every text, in order.
        widths: Widths of a source row and of a target row in the store.
        source_range: First and one past the last source coordinate that counts; all when not given.
        most_shuffled: Most numbers in memory while pairs are shuffled.
    """

    read: ReadRows
    ranges: tuple[tuple[int, int], ...]
    widths: tuple[int, int]
    source_range: tuple[int, int] | None = None
    most_shuffled: int = MOST_SHUFFLED

    @property
    def d_source(self) -> int:
        """Width of the source activations."""
        start, stop = self.source_range or (0, self.widths[0])
        return stop - start

    @property
    def d_target(self) -> int:
        """Width of the target activations."""
        return self.widths[1]

    @property
    def n_per_text(self) -> tuple[int, ...]:
        """How many consecutive pairs each text gave."""
        return tuple(stop - start for start, stop in self.ranges)

    @property
    def n_rows(self) -> int:
        """How many pairs there are."""
        return int(self._counts[-1])

    @cached_property
    def _counts(self) -> Int[Tensor, " text"]:
        """Pairs before every text, and pairs in all."""
        return torch.tensor([0, *self.n_per_text]).cumsum(0)

    @cached_property
    def _firsts(self) -> Int[Tensor, " text"]:
        return torch.tensor([start for start, _ in self.ranges], dtype=torch.int64)

    def rows(
        self, indices: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row d_source"], Float[Tensor, "row d_target"]]:
        """Reads any pairs.

        Args:
            indices: Pairs, counted over these texts, in any order.

        Returns:
            Source and target rows in that order, float32.
        """
        texts = torch.searchsorted(self._counts, indices, right=True) - 1
        stored = self._firsts[texts] + indices - self._counts[texts]
        source = self.read(stored, "source")
        if self.source_range is not None:
            source = source[:, slice(*self.source_range)]
        return source, self.read(stored, "target")

    def batches(self, n_rows: int = 8192) -> Iterator[tuple[Tensor, Tensor]]:
        """Reads all pairs in order.

        Args:
            n_rows: Pairs at once; the last batch may have fewer.

        Yields:
            tuple[Tensor, Tensor]: Source rows and their target rows.
        """
        for start in range(0, self.n_rows, n_rows):
            yield self.rows(torch.arange(start, min(start + n_rows, self.n_rows)))

    def shuffled(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Reads every pair once, in random order.

        While all pairs have at most `most_shuffled` numbers every order is as likely as any other.
        Of more, runs of `ROWS_TOGETHER` pairs from anywhere are drawn until as many are in memory,
        and these are shuffled pair by pair.

        Args:
            batch_size: Pairs at once; the last batch may have fewer.
            generator: Source of randomness.

        Yields:
            tuple[Tensor, Tensor]: Source rows and their target rows.
        """
        n_held = max(batch_size, self.most_shuffled // sum(self.widths) // batch_size * batch_size)
        if self.n_rows <= n_held:
            order = torch.randperm(self.n_rows, generator=generator, device=generator.device).cpu()
            yield from map(self.rows, order.split(batch_size))
            return
        for held in self._held(n_held, generator):
            source, target = self.rows(held)
            order = torch.randperm(len(held), generator=generator, device=generator.device).cpu()
            for chosen in order.split(batch_size):
                yield source[chosen], target[chosen]

    def _held(self, n_held: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yields which pairs are in memory together: runs from anywhere, in the store's order."""
        n_runs = -(-self.n_rows // ROWS_TOGETHER)
        runs = torch.randperm(n_runs, generator=generator, device=generator.device).cpu()
        waiting = torch.empty(0, dtype=torch.int64)
        for drawn in runs.split(max(1, n_held // ROWS_TOGETHER)):
            rows = (drawn[:, None] * ROWS_TOGETHER + torch.arange(ROWS_TOGETHER)).flatten()
            waiting = torch.cat([waiting, rows[rows < self.n_rows]])
            while len(waiting) >= n_held:
                yield waiting[:n_held].sort().values
                waiting = waiting[n_held:]
        if len(waiting):
            yield waiting.sort().values

    def columns(self, start: int, stop: int) -> "StoredPairs":
        """Returns the same pairs with some of the source coordinates.

        Args:
            start: First coordinate.
            stop: One past the last.

        Returns:
            Pairs that are read from the same store.

        Raises:
            ShapeError: If there are no such coordinates.
        """
        if not 0 <= start < stop <= self.d_source:
            raise ShapeError(f"source coordinates {start} to {stop}: there are {self.d_source}")
        before = 0 if self.source_range is None else self.source_range[0]
        return replace(self, source_range=(before + start, before + stop))
