"""Paired activations themselves, for fits that moments are not enough for."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ShapeError
from isthmus.maps.moments import PairMoments


@dataclass(frozen=True)
class PairedRows:
    """Paired activations of one target site.

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
    def moments(self) -> PairMoments:
        """Moments of these pairs."""
        moments = PairMoments(self.source.shape[1], self.target.shape[1])
        moments.update(self.source, self.target)
        return moments

    def columns(self, start: int, stop: int) -> "PairedRows":
        """Returns the same pairs with some of the source coordinates.

        Args:
            start: First coordinate.
            stop: One past the last.

        Returns:
            Pairs that share memory with these.
        """
        return PairedRows(self.source[:, start:stop], self.target, self.n_per_text)
