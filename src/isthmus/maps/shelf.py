"""The shelf: every map that is fitted on pairs, by name, with its usual settings."""

from collections.abc import Mapping
from typing import Literal, get_args

from isthmus.maps.base import AffineMap
from isthmus.maps.bidirectional import BidirectionalFitter
from isthmus.maps.fitting import MomentFitter, RowFitter, TwoWayFitter
from isthmus.maps.gcv import GcvRidgeFitter
from isthmus.maps.kernel import KernelRidgeFitter
from isthmus.maps.moments import PairMoments
from isthmus.maps.procrustes import ProcrustesFitter
from isthmus.maps.reduced_rank import ReducedRankFitter
from isthmus.maps.relative import RelativeFitter
from isthmus.maps.residual import ResidualFitter
from isthmus.maps.ridge import RidgeFitter
from isthmus.maps.robust import ClippedRidgeFitter, HuberRidgeFitter, TrimmedRidgeFitter
from isthmus.maps.whitened import (
    PrincipalComponentFitter,
    StandardisedRidgeFitter,
    WhitenedProcrustesFitter,
)

REDUCED_RANK = 64


class _NarrowFitter:
    """Reduced rank with `REDUCED_RANK` directions, or all where there are fewer."""

    def fit(self, train: PairMoments, selection: PairMoments) -> AffineMap:
        rank = min(REDUCED_RANK, train.d_source, train.d_target)
        return ReducedRankFitter(rank).fit(train, selection)


FROM_MOMENTS: Mapping[str, MomentFitter] = {
    "procrustes": ProcrustesFitter(),
    "reduced_rank": _NarrowFitter(),
    "pca_whitened": PrincipalComponentFitter(),
    "ridge_one_layer": RidgeFitter(),
    "ridge": RidgeFitter(),
    "ridge_gcv": GcvRidgeFitter(),
    "ridge_standardised": StandardisedRidgeFitter(),
}
"""Maps that need one pass and no row."""

FROM_BOTH_WAYS: Mapping[str, TwoWayFitter] = {
    "procrustes_whitened": WhitenedProcrustesFitter(),
    "bidirectional": BidirectionalFitter(),
}
"""Maps that need all second moments of both sides."""

FROM_ROWS: Mapping[str, RowFitter] = {
    "relative": RelativeFitter(),
    "ridge_clipped": ClippedRidgeFitter(),
    "ridge_trimmed": TrimmedRidgeFitter(),
    "ridge_huber": HuberRidgeFitter(),
    "kernel_ridge": KernelRidgeFitter(),
    "autoencoder_residual": ResidualFitter(),
}
"""Maps that need the pairs themselves; the paper's own lie with their settings."""

Candidate = Literal[
    "relative",
    "procrustes",
    "procrustes_whitened",
    "ridge_one_layer",
    "reduced_rank",
    "pca_whitened",
    "ridge",
    "ridge_gcv",
    "ridge_standardised",
    "ridge_clipped",
    "ridge_huber",
    "bidirectional",
    "kernel_ridge",
    "autoencoder_residual",
]
"""What `auto` chooses among."""

SIMPLEST_FIRST: tuple[Candidate, ...] = get_args(Candidate)
"""Fewer fitted numbers first, one site before several, affine before other maps."""
