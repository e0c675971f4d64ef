"""Ridge regression whose strength is chosen without other pairs, by generalised cross-validation.

1. Every strength has its residual sum RSS and its degrees of freedom, 1 + Σ e / (e + λ) over the
   eigenvalues e of Sxx; the 1 is the mean.
2. GCV = n · RSS / (n - degrees)² estimates the error on unseen pairs; the smallest is kept.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.maps.base import AffineMap, affine_from_fit
from isthmus.maps.moments import PairMoments, require_fittable
from isthmus.maps.ridge import STRENGTHS, RidgePath, require_strengths


def gcv_scores(train: PairMoments, strengths: tuple[float, ...]) -> Float[Tensor, " strength"]:
    """Computes the generalised cross-validation score of ridge at every strength.

    GCV(λ) = n · |y - ŷ|² / (n - tr H)², where ŷ = H y is the ridge fit with its intercept.

    Source: Golub, Heath and Wahba 1979, "Generalized cross-validation as a method for choosing a
    good ridge parameter".

    Args:
        train: Moments of the training pairs.
        strengths: Relative to the mean eigenvalue of Sxx; finite and above 0.

    Returns:
        One score per strength, in the order given; lower is better.
    """
    return _scores_of(RidgePath(train), train, strengths)


def _scores_of(
    path: RidgePath, train: PairMoments, strengths: tuple[float, ...]
) -> Float[Tensor, " strength"]:
    power = path.rotated.square().sum(1)
    scores = []
    for strength in strengths:
        penalised = path.penalised(strength)
        # tr(2 Wᵀ Sxy - Wᵀ Sxx W) in the eigenbasis of Sxx.
        explained = (power * (2 / penalised - path.eigenvalues / penalised.square())).sum()
        residual = (train.target_total - explained).clamp(min=0)
        degrees = 1 + (path.eigenvalues / penalised).sum()
        scores.append(train.n * residual / (train.n - degrees).square())
    return torch.stack(scores)


@dataclass(frozen=True)
class GcvRidgeFitter:
    """Fits ridge with the strength that generalised cross-validation prefers.

    Takes no selection pairs, so that all pairs can be fitted on. It treats pairs as independent:
    tokens of one text are not, and the strength then comes out too small.

    Source: Golub, Heath and Wahba 1979, "Generalized cross-validation as a method for choosing a
    good ridge parameter".

    Attributes:
        strengths: Candidates, relative to the mean eigenvalue of Sxx; finite and above 0.

    Raises:
        ConfigError: If there is no strength, or one is not a finite positive number.
    """

    strengths: tuple[float, ...] = STRENGTHS

    def __post_init__(self) -> None:
        require_strengths(self.strengths)

    def fit(self, train: PairMoments, _selection: PairMoments | None = None) -> AffineMap:
        """Returns the map whose strength has the least score.

        Args:
            train: Moments of the training pairs.
            _selection: Not needed; other fitters choose by them.

        Returns:
            A float32 map whose `details` hold the chosen strength.

        Raises:
            FitError: If there are fewer than two pairs or activations never vary.
        """
        require_fittable(train, "a ridge map")
        path = RidgePath(train)
        best = self.strengths[int(_scores_of(path, train, self.strengths).argmin())]
        details = {"strength": best}
        weight = path.weight(best)
        return affine_from_fit(weight, train.source_mean, train.target_mean, "ridge_gcv", details)
