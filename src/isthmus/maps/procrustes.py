"""Orthogonal Procrustes: the rotation, with or without one scale, that brings two spaces together.

1. Sxy = U diag(σ) Vᵀ, the thin singular value decomposition.
2. R = U Vᵀ: orthogonal for equal widths, with orthonormal rows or columns for different ones.
3. The scale is the least-squares one for this R, tr(Rᵀ Sxy) / tr(Rᵀ Sxx R); or 1.
"""

from dataclasses import dataclass

import torch

from isthmus.core.errors import FitError
from isthmus.maps.base import AffineMap, affine_from_fit
from isthmus.maps.moments import PairMoments, require_fittable


@dataclass(frozen=True)
class ProcrustesFitter:
    """Fits y ≈ scale · (x - x̄) R + ȳ with R orthogonal, or semi-orthogonal for different widths.

    R = U Vᵀ maximises tr(Rᵀ Sxy). Where the target is at least as wide as the source this is also
    the least-squares solution; where it is narrower, least squares has no closed form and this is
    the usual stand-in.

    Source: Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem".

    Attributes:
        is_scaled: Whether one scale is fitted too.
    """

    is_scaled: bool = True

    def fit(self, train: PairMoments, _selection: PairMoments | None = None) -> AffineMap:
        """Returns the map; nothing has to be chosen, so no selection pairs are needed.

        Args:
            train: Moments of the training pairs.
            _selection: Not needed; other fitters choose by them.

        Returns:
            A float32 map whose `details` hold the scale.

        Raises:
            FitError: If there are fewer than two pairs, or one side never varies.
        """
        require_fittable(train, "a Procrustes map")
        left, singular_values, right = torch.linalg.svd(train.cross_scatter, full_matrices=False)
        if not bool(singular_values[0] > 0):
            raise FitError(
                f"a Procrustes map found no relation in {train.n} pairs (Sxy is zero): "
                "give it texts on which the target activations vary"
            )
        rotation = left @ right
        scale = 1.0
        if self.is_scaled:
            spread = (rotation * (train.source_scatter @ rotation)).sum()
            scale = float(singular_values.sum() / spread)
        return affine_from_fit(
            scale * rotation, train.source_mean, train.target_mean, "procrustes", {"scale": scale}
        )
