"""Ridge regression in closed form, with the strength chosen by held-out score.

1. Sxx = Q diag(e) Qᵀ is decomposed once.
2. Every strength s gives W = Q diag(1 / (e + s ē)) Qᵀ Sxy, where ē is the mean eigenvalue.
3. The selection pairs are turned into the same basis, where the error of any strength costs a few
   sums; the strength that leaves the least unexplained is kept, and only its W is computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError
from isthmus.maps.base import AffineMap, affine_from_fit
from isthmus.maps.moments import PairMoments, require_fittable
from isthmus.maps.quality import fraction_unexplained, require_scorable

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def require_strengths(strengths: tuple[float, ...]) -> None:
    """Refuses strengths with which ridge regression is not defined.

    Args:
        strengths: Strengths relative to the mean eigenvalue of Sxx.

    Raises:
        ConfigError: If there is none, or one is not a finite positive number.
    """
    if not strengths or not all(0 < strength < float("inf") for strength in strengths):
        raise ConfigError(
            f"ridge strengths {strengths} must be finite and above 0: try {STRENGTHS[2:7]}"
        )


class Candidate(NamedTuple):
    """A weight and the strength that it was fitted with.

    Attributes:
        strength: Relative to the mean eigenvalue of Sxx.
        weight: Linear part, float64.
    """

    strength: float
    weight: Float[Tensor, "d_source d_target"]


class RidgePath:
    """The ridge weights of all strengths, at the price of one eigendecomposition.

    W(s) = (Sxx + s ē I)⁻¹ Sxy, where ē = tr(Sxx) / d_source.

    Args:
        train: Moments of the training pairs.

    Attributes:
        eigenvalues: Of Sxx, not negative, upwards.
        rotated: Qᵀ Sxy, row i belonging to eigenvalue i.
    """

    eigenvalues: Float[Tensor, " d_source"]
    rotated: Float[Tensor, "d_source d_target"]

    def __init__(self, train: PairMoments) -> None:
        self._train = train
        eigenvalues, self._basis = torch.linalg.eigh(train.source_scatter)
        # Rounding leaves tiny negative ones when n < d_source.
        self.eigenvalues = eigenvalues.clamp(min=0)
        self.rotated = self._basis.T @ train.cross_scatter

    def weight(self, strength: float) -> Float[Tensor, "d_source d_target"]:
        """Returns the weight of one strength, float64."""
        weight: Tensor = self._basis @ (self.rotated / self.penalised(strength)[:, None])
        return weight

    def penalised(self, strength: float) -> Float[Tensor, " d_source"]:
        """Returns the eigenvalues of Sxx + s ē I."""
        return self.eigenvalues + strength * self.eigenvalues.mean()

    def unexplained(
        self, strengths: tuple[float, ...], selection: PairMoments
    ) -> Float[Tensor, " strength"]:
        """Measures every strength on other pairs, at the price of a few products for all of them.

        With P = diag(1 / (e + s ē)) and R = Qᵀ Sxy, so that W = Q P R, the error of W on pairs with
        the scatters S is tr Syy - 2 Σ P (R ∘ Qᵀ Sxy) + Σ P (R Rᵀ ∘ Qᵀ Sxx Q) P + n |offset|².

        Refuses pairs of other widths (`ShapeError`), fewer than two and targets that never vary
        (`FitError`).

        Args:
            strengths: Finite positive strengths.
            selection: Moments of the other pairs.

        Returns:
            What `fraction_unexplained` says of the weight of each, at least 0.
        """
        total = require_scorable(self._train.d_source, self._train.d_target, selection)
        basis, rotated = self._basis, self.rotated
        inverses = 1 / torch.stack([self.penalised(strength) for strength in strengths])
        cross = (rotated * (basis.T @ selection.cross_scatter)).sum(1)
        spread = (rotated @ rotated.T) * (basis.T @ selection.source_scatter @ basis)
        shift = (selection.source_mean - self._train.source_mean) @ basis
        offset = (inverses * shift) @ rotated + self._train.target_mean - selection.target_mean
        error = (
            selection.target_total
            - 2 * inverses @ cross
            + ((inverses @ spread) * inverses).sum(1)
            + selection.n * offset.square().sum(1)
        )
        # For a perfect map the terms cancel up to rounding, which may leave a tiny negative sum.
        shares: Tensor = error.clamp(min=0) / total
        return shares

    def best_on(self, selection: PairMoments, strengths: tuple[float, ...]) -> Candidate:
        """Chooses the strength that leaves the least unexplained on other pairs.

        Refuses what `unexplained` refuses.

        Args:
            selection: Moments of pairs that were not fitted on.
            strengths: Finite positive strengths, at least one.

        Returns:
            The best one with its weight; of equals the first.
        """
        best = strengths[int(self.unexplained(strengths, selection).argmin())]
        return Candidate(best, self.weight(best))


def best_on(
    selection: PairMoments, train: PairMoments, candidates: Iterator[Candidate]
) -> Candidate:
    """Chooses the candidate that leaves the least unexplained on the selection pairs.

    Refuses fewer than two selection pairs and targets that never vary (`FitError`), and pairs of
    other widths (`ShapeError`).

    Args:
        selection: Moments of pairs that none of the candidates was fitted on.
        train: Moments of the training pairs, for their means.
        candidates: At least one.

    Returns:
        The best one; of equals the first.
    """

    def unexplained(candidate: Candidate) -> float:
        return fraction_unexplained(
            candidate.weight, train.source_mean, train.target_mean, selection
        )

    return min(candidates, key=unexplained)


@dataclass(frozen=True)
class RidgeFitter:
    """Fits y ≈ (x - x̄) W + ȳ by least squares with a penalty λ |W|².

    W = (Sxx + λ I)⁻¹ Sxy and λ = strength · tr(Sxx) / d_source, so that a strength means the same
    whatever the scale of the activations and the number of pairs.

    Source: Hoerl and Kennard 1970, "Ridge regression: biased estimation for
    nonorthogonal problems".

    Attributes:
        strengths: Candidates, relative to the mean eigenvalue of Sxx; finite and above 0.

    Raises:
        ConfigError: If there is no strength, or one is not a finite positive number.
    """

    strengths: tuple[float, ...] = STRENGTHS

    def __post_init__(self) -> None:
        require_strengths(self.strengths)

    def fit(self, train: PairMoments, selection: PairMoments) -> AffineMap:
        """Returns the map whose strength does best on the selection pairs.

        Refuses fewer than two pairs on either side and activations that never vary (`FitError`),
        and selection pairs of other widths (`ShapeError`).

        Args:
            train: Moments of the training pairs.
            selection: Moments of other pairs, by which the strength is chosen. Report the quality
                on a third set: this one has been used.

        Returns:
            A float32 map whose `details` hold the chosen strength.
        """
        require_fittable(train, "a ridge map")
        strength, weight = RidgePath(train).best_on(selection, self.strengths)
        details = {"strength": strength}
        return affine_from_fit(weight, train.source_mean, train.target_mean, "ridge", details)
