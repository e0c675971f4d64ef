"""Closed-form maps that do not let the coordinates of largest variance decide everything.

1. Standardised ridge divides every coordinate of both sides by its deviation, fits, and folds the
   deviations into the weight.
2. Principal-component regression whitens the source in its principal coordinates, keeps the first
   k, and chooses k on the selection pairs.
3. Whitened Procrustes turns both sides into spaces of equal variance in every direction, shrunk
   towards a sphere, finds the rotation there and turns back.

Ridge on a whitened source is no map of its own: with C = Sxx + s ē I as whitening, its weight is
plain ridge of another strength, shortened by one factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps.base import AffineMap, affine_from_fit
from isthmus.maps.fitting import TwoWayMoments
from isthmus.maps.moments import PairMoments, require_fittable
from isthmus.maps.ridge import STRENGTHS, Candidate, RidgePath, best_on, require_strengths

SHRINKAGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)

_NOTHING = 1e-10  # principal directions with less of the largest variance are rounding


@dataclass(frozen=True)
class StandardisedRidgeFitter:
    """Fits ridge on coordinates of mean 0 and deviation 1, on both sides.

    W = Dx⁻¹ (Dx⁻¹ Sxx Dx⁻¹ + λ I)⁻¹ Dx⁻¹ Sxy, with Dx the deviations. Those of the target change
    only which strength is chosen: each of its coordinates counts alike. The map is the same
    whatever unit a coordinate has.

    Attributes:
        strengths: Candidates, relative to the mean eigenvalue; finite and above 0.

    Raises:
        ConfigError: If there is no strength, or one is not a finite positive number.
    """

    strengths: tuple[float, ...] = STRENGTHS

    def __post_init__(self) -> None:
        require_strengths(self.strengths)

    def fit(self, train: PairMoments, selection: PairMoments) -> AffineMap:
        """Returns the map whose strength does best on the standardised selection pairs.

        Args:
            train: Moments of the training pairs.
            selection: Moments of other pairs, by which the strength is chosen.

        Returns:
            A float32 map on plain activations whose `details` hold the chosen strength.

        Raises:
            FitError: If there are fewer than two pairs on a side or activations never vary.
        """
        require_fittable(train, "a standardised ridge map")
        scales = _deviations(train.source_scatter.diagonal()), _deviations(train.target_scatter)
        scaled = train.scaled(*scales)
        strength, weight = RidgePath(scaled).best_on(selection.scaled(*scales), self.strengths)
        weight = weight / scales[0][:, None] * scales[1]
        details = {"strength": strength}
        return affine_from_fit(
            weight, train.source_mean, train.target_mean, "ridge_standardised", details
        )


def _deviations(scatter: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    deviation = scatter.sqrt()
    # A coordinate that never varies keeps its scale: dividing by its deviation would give NaN.
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))


@dataclass(frozen=True)
class PrincipalComponentFitter:
    """Fits least squares on the first k whitened principal coordinates of the source.

    W = Qk diag(1 / ek) Qkᵀ Sxy. Directions in which the source hardly varies are cut off rather
    than shrunk.

    Source: Massy 1965, "Principal components regression in exploratory statistical research".

    Attributes:
        ranks: Candidates for k; those above the number of directions that vary stand for all.

    Raises:
        ConfigError: If there is no candidate, or one is below 1.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            raise ConfigError(f"ranks {self.ranks}: give at least one, each 1 or more")

    def fit(self, train: PairMoments, selection: PairMoments) -> AffineMap:
        """Returns the map whose number of directions does best on the selection pairs.

        Args:
            train: Moments of the training pairs.
            selection: Moments of other pairs, by which the number is chosen.

        Returns:
            A float32 map whose `details` hold the chosen `rank`.

        Raises:
            FitError: If there are fewer than two pairs on a side or activations never vary.
        """
        require_fittable(train, "a principal-component map")
        rank, weight = best_on(selection, train, self._candidates(train))
        return affine_from_fit(
            weight, train.source_mean, train.target_mean, "pca_whitened", {"rank": rank}
        )

    def _candidates(self, train: PairMoments) -> Iterator[Candidate]:
        eigenvalues, basis = torch.linalg.eigh(train.source_scatter)
        eigenvalues, basis = eigenvalues.flip(0), basis.flip(1)
        n_varying = int((eigenvalues > _NOTHING * eigenvalues[0]).sum())
        rotated = basis.T @ train.cross_scatter
        for rank in sorted({min(rank, n_varying) for rank in self.ranks}):
            kept = rotated[:rank] / eigenvalues[:rank, None]
            yield Candidate(float(rank), basis[:, :rank] @ kept)


@dataclass(frozen=True)
class WhitenedProcrustesFitter:
    """Fits a rotation between whitened spaces: W = c · Cx^-½ R Cy^½.

    Cx = (1 - s) Sxx / n + s v I, with v the mean variance, and Cy likewise. R = U Vᵀ of
    Cx^-½ Sxy Cy^-½ turns most-correlated directions into each other, however large they are. With
    shrinkage 1 it is Procrustes; with 0 it would not depend on the basis of either space.

    Source: Smith, Turban, Hamblin and Hammerla 2017, "Offline bilingual word vectors, orthogonal
    transformations and the inverted softmax", and Ledoit and Wolf 2004 for the shrinkage.

    Attributes:
        shrinkages: Candidates for s, above 0 and at most 1.

    Raises:
        ConfigError: If there is no candidate, or one is out of range.
    """

    shrinkages: tuple[float, ...] = SHRINKAGES

    def __post_init__(self) -> None:
        if not self.shrinkages or not all(0 < one <= 1 for one in self.shrinkages):
            raise ConfigError(f"shrinkages {self.shrinkages} must be above 0 and at most 1")

    def fit(self, train: TwoWayMoments, selection: TwoWayMoments) -> AffineMap:
        """Returns the map whose shrinkage does best on the selection pairs.

        Args:
            train: Moments of the training pairs, both ways.
            selection: Moments of other pairs, by which the shrinkage is chosen.

        Returns:
            A float32 map whose `details` hold the chosen `shrinkage`.

        Raises:
            FitError: If there are fewer than two pairs on a side or one side never varies.
        """
        pairs = train.there
        require_fittable(pairs, "a whitened Procrustes map")
        if not bool(pairs.cross_scatter.abs().max() > 0):
            raise FitError(
                f"a whitened Procrustes map found no relation in {pairs.n} pairs (Sxy is zero): "
                "give it texts on which the target activations vary"
            )
        shrinkage, weight = best_on(selection.there, pairs, self._candidates(train))
        return affine_from_fit(
            weight,
            pairs.source_mean,
            pairs.target_mean,
            "procrustes_whitened",
            {"shrinkage": shrinkage},
        )

    def _candidates(self, train: TwoWayMoments) -> Iterator[Candidate]:
        pairs = train.there
        for shrinkage in self.shrinkages:
            source = _shrunk_root(pairs.source_scatter, shrinkage, -0.5)
            target = _shrunk_root(train.back.source_scatter, shrinkage, -0.5)
            back = _shrunk_root(train.back.source_scatter, shrinkage, 0.5)
            left, _, right = torch.linalg.svd(
                source @ pairs.cross_scatter @ target, full_matrices=False
            )
            weight = source @ (left @ right) @ back
            spread = (weight * (pairs.source_scatter @ weight)).sum()
            scale = (weight * pairs.cross_scatter).sum() / spread
            yield Candidate(shrinkage, scale * weight)


def _shrunk_root(
    scatter: Float[Tensor, "d_model d_model"], shrinkage: float, power: float
) -> Float[Tensor, "d_model d_model"]:
    eigenvalues, basis = torch.linalg.eigh(scatter)
    eigenvalues = eigenvalues.clamp(min=0)
    shrunk = (1 - shrinkage) * eigenvalues + shrinkage * eigenvalues.mean()
    if not bool(shrunk.min() > 0):
        raise FitError("one side of the pairs never varies: give it different texts")
    root: Tensor = (basis * shrunk**power) @ basis.T
    return root
