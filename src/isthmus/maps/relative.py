"""A map from anchors alone: what a point resembles in the source, it shall resemble in the target.

1. Some pairs are anchors. On both sides they are centred and brought to length 1.
2. A source point's coordinates are its inner products with the source anchors.
3. The pseudo-inverse of the target anchors finds the target point with these coordinates, and one
   factor, the least-squares one over the anchors, brings it to the target's scale.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps.base import AffineMap, affine_from_fit, require_finite_rows
from isthmus.maps.fitting import OnStep, no_step
from isthmus.maps.rows import PairedRows

CUTOFF = 0.3


@dataclass(frozen=True)
class RelativeFitter:
    """Maps by resemblance to anchors: W = c · Âxᵀ (Âyᵀ)⁺, with Â the anchors at length 1.

    Nothing is trained but the factor. It is exact where the target is a rotated, scaled copy of
    the source and the anchors span it; it takes angles for granted that two models need not share.

    Source: Moschella et al. 2022, arXiv 2209.15430, for the representation; Maiorano et al. 2024,
    arXiv 2406.15057, for its inverse.

    Attributes:
        n_anchors: Most pairs that serve as anchors, at least 2; they are drawn from the training
            pairs.
        cutoff: Singular values below this share of the largest are left out of the inverse, from 0
            and below 1.

    Raises:
        ConfigError: If a number is out of range.
    """

    n_anchors: int = 1024
    cutoff: float = CUTOFF

    def __post_init__(self) -> None:
        if self.n_anchors < 2 or not 0 <= self.cutoff < 1:
            raise ConfigError(
                f"{self.n_anchors} anchors with cutoff {self.cutoff}: give at least 2 and a cutoff "
                "from 0 to below 1"
            )

    def fit(
        self,
        train: PairedRows,
        _selection: PairedRows | None,
        generator: torch.Generator,
        _on_step: OnStep = no_step,
    ) -> AffineMap:
        """Returns the map of a random choice of anchors.

        Args:
            train: Pairs of which some become anchors.
            _selection: Not needed; other fitters choose by them.
            generator: Which ones.
            _on_step: Never called: there are no steps.

        Returns:
            A float32 map whose `details` hold the number of anchors and the scale.

        Raises:
            FitError: If there are fewer than two pairs or the anchors are all equal on a side.
            NonFiniteError: If an activation is NaN or infinite.
        """
        require_finite_rows(train.source, train.target)
        if len(train.source) < 2:
            raise FitError(
                f"a relative map needs at least 2 pairs, got {len(train.source)}: give more texts"
            )
        order = torch.randperm(len(train.source), generator=generator, device=generator.device)
        kept = order[: self.n_anchors].to(train.source.device)
        sides = [side[kept].double() for side in (train.source, train.target)]
        means = [side.mean(0) for side in sides]
        away = [side - mean for side, mean in zip(sides, means, strict=True)]
        units = [_unit(rows) for rows in away]
        weight = units[0].T @ torch.linalg.pinv(units[1].T, rtol=self.cutoff)
        made = away[0] @ weight
        scale = float((made * away[1]).sum() / made.square().sum())
        details = {"anchors": float(len(kept)), "scale": scale}
        return affine_from_fit(scale * weight, means[0], means[1], "relative", details)


def _unit(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    norms = rows.norm(dim=1, keepdim=True)
    if not bool(norms.max() > 0):
        raise FitError("the anchors of a relative map are all equal: give it different texts")
    tiny = torch.finfo(norms.dtype).tiny
    units: Tensor = rows / norms.clamp(min=tiny)
    return units
