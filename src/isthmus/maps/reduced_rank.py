"""Reduced-rank ridge regression: a map that passes only through a few directions.

1. Every strength gives its ridge weight W (see `maps/ridge.py`).
2. Wᵀ (Sxx + λ I) W = Wᵀ Sxy is the scatter of the fitted values, penalty rows included; V holds its
   first `rank` eigenvectors.
3. W V Vᵀ solves the penalised problem among all weights of that rank; the strength whose map does
   best on the selection pairs is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from isthmus.core.errors import ConfigError
from isthmus.maps.base import AffineMap, affine_from_fit
from isthmus.maps.moments import PairMoments, require_fittable
from isthmus.maps.ridge import STRENGTHS, Candidate, RidgePath, best_on, require_strengths


@dataclass(frozen=True)
class ReducedRankFitter:
    """Fits y ≈ (x - x̄) W + ȳ with a penalty λ |W|² and rank(W) at most `rank`.

    W = W_ridge V Vᵀ, where V spans the top principal directions of the ridge map's fitted values.

    Source: Mukherjee and Zhu 2011, "Reduced rank ridge regression and its kernel extensions", §2.

    Attributes:
        rank: Largest rank of the linear part, from 1 to the smaller width.
        strengths: Candidates, relative to the mean eigenvalue of Sxx; finite and above 0.

    Raises:
        ConfigError: If the rank is below 1 or a strength is not a finite positive number.
    """

    rank: int
    strengths: tuple[float, ...] = STRENGTHS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank {self.rank} is below 1: choose from 1 to the smaller width")
        require_strengths(self.strengths)

    def fit(self, train: PairMoments, selection: PairMoments) -> AffineMap:
        """Returns the map of this rank whose strength does best on the selection pairs.

        Refuses fewer than two pairs on either side and activations that never vary (`FitError`),
        and selection pairs of other widths (`ShapeError`).

        Args:
            train: Moments of the training pairs.
            selection: Moments of other pairs, by which the strength is chosen. Report the quality
                on a third set: this one has been used.

        Returns:
            A float32 map whose `details` hold the rank and the chosen strength.

        Raises:
            ConfigError: If the rank exceeds the smaller width.
        """
        narrow = min(train.d_source, train.d_target)
        if self.rank > narrow:
            raise ConfigError(
                f"rank {self.rank} exceeds the smaller width of {train.d_source} → {train.d_target}"
                f": choose from 1 to {narrow}"
            )
        require_fittable(train, "a reduced-rank map")
        strength, weight = best_on(selection, train, self._candidates(train))
        details = {"strength": strength, "rank": float(self.rank)}
        return affine_from_fit(
            weight, train.source_mean, train.target_mean, "reduced_rank", details
        )

    def _candidates(self, train: PairMoments) -> Iterator[Candidate]:
        path = RidgePath(train)
        for strength in self.strengths:
            weight = path.weight(strength)
            fitted_scatter = weight.T @ train.cross_scatter
            # eigh orders eigenvalues upwards, so the principal directions come last.
            directions = torch.linalg.eigh((fitted_scatter + fitted_scatter.T) / 2).eigenvectors
            kept = directions[:, -self.rank :]
            yield Candidate(strength, (weight @ kept) @ kept.T)
