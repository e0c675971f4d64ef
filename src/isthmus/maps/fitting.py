"""What every fitter is: from moments, from moments both ways, or from rows, to a frozen map."""

from collections.abc import Callable
from typing import Protocol

import torch

from isthmus.maps.base import ActivationMap, AffineMap
from isthmus.maps.moments import PairMoments
from isthmus.maps.rows import PairedRows, Pairs

OnStep = Callable[[int, float], None]
"""Told the number of each step, from 1, and what is being lowered."""


def no_step(_step: int, _loss: float) -> None:
    """Tells nobody."""


class MomentFitter(Protocol):
    """Fits an affine map in closed form; no activation has to be kept."""

    def fit(self, train: PairMoments, selection: PairMoments, /) -> AffineMap:
        """Returns the map of the training pairs that does best on the selection pairs.

        Args:
            train: Moments of the training pairs.
            selection: Moments of other pairs, for what has to be chosen.

        Returns:
            A frozen map.
        """
        ...


class TwoWayMoments:
    """Moments of paired activations in both directions, for fits that need all of Syy.

    Args:
        d_source: Width of the source activations.
        d_target: Width of the target activations.

    Attributes:
        there: Moments of (source, target) pairs.
        back: Moments of the same pairs turned round; its `source_scatter` is Syy.
    """

    there: PairMoments
    back: PairMoments

    def __init__(self, d_source: int, d_target: int) -> None:
        self.there = PairMoments(d_source, d_target)
        self.back = PairMoments(d_target, d_source)

    @classmethod
    def of(cls, pairs: Pairs) -> "TwoWayMoments":
        """Returns the moments of pairs; no more than a batch of them is in memory at a time."""
        moments = cls(pairs.d_source, pairs.d_target)
        for source, target in pairs.batches():
            moments.update(PairedRows(source, target))
        return moments

    def update(self, rows: PairedRows) -> None:
        """Adds pairs; refuses what `PairMoments.update` refuses."""
        self.there.update(rows.source, rows.target)
        self.back.update(rows.target, rows.source)


class TwoWayFitter(Protocol):
    """Fits an affine map in closed form from the moments of both directions."""

    def fit(self, train: TwoWayMoments, selection: TwoWayMoments, /) -> AffineMap:
        """Returns the map of the training pairs that does best on the selection pairs.

        Args:
            train: Moments of the training pairs.
            selection: Moments of other pairs, for what has to be chosen.

        Returns:
            A frozen map.
        """
        ...


class RowFitter(Protocol):
    """Fits any map on pairs that are in memory."""

    def fit(
        self,
        train: PairedRows,
        selection: PairedRows,
        generator: torch.Generator,
        on_step: OnStep,
        /,
    ) -> ActivationMap:
        """Returns the map of the training pairs that does best on the selection pairs.

        Args:
            train: The training pairs.
            selection: Other pairs, for what has to be chosen.
            generator: Source of everything random.
            on_step: Called after every step.

        Returns:
            A frozen map.
        """
        ...
