"""Ridge regression in closed form, with the strength chosen by held-out score.

1. Sxx = Q diag(e) Qᵀ is decomposed once.
2. Every strength s gives W = Q diag(1 / (e + s ē)) Qᵀ Sxy, where ē is the mean eigenvalue.
3. The strength whose map leaves the least unexplained on the selection pairs is kept.
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
from isthmus.maps.quality import fraction_unexplained

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


def ridge_weights(train: PairMoments, strengths: tuple[float, ...]) -> Iterator[Candidate]:
    """Yields every strength with its ridge weight, at the price of one eigendecomposition.

    W(s) = (Sxx + s ē I)⁻¹ Sxy, where ē = tr(Sxx) / d_source.

    Args:
        train: Moments of the training pairs.
        strengths: Finite positive strengths.

    Yields:
        Candidate: One per strength, in the order given.
    """
    eigenvalues, basis = torch.linalg.eigh(train.source_scatter)
    eigenvalues = eigenvalues.clamp(min=0)  # rounding leaves tiny negative ones when n < d_source
    rotated = basis.T @ train.cross_scatter
    for strength in strengths:
        penalised = eigenvalues + strength * eigenvalues.mean()
        yield Candidate(strength, basis @ (rotated / penalised[:, None]))


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
        candidates = ridge_weights(train, self.strengths)
        strength, weight = best_on(selection, train, candidates)
        details = {"strength": strength}
        return affine_from_fit(weight, train.source_mean, train.target_mean, "ridge", details)
