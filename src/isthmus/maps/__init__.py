"""Maps from one model's activation space to another's: fitted mutably, held frozen."""

from isthmus.maps.autoencoder import AutoencoderMap, AutoencoderSettings
from isthmus.maps.autoencoder_training import fit_autoencoder, train_autoencoder
from isthmus.maps.automatic import MapScore, choose_map, errors_by_text
from isthmus.maps.base import ActivationMap, AffineMap, MapQuality
from isthmus.maps.bidirectional import BidirectionalFitter, BothWays
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.files import FittedMap, load_map, save_map
from isthmus.maps.fitting import MomentFitter, RowFitter, TwoWayFitter, TwoWayMoments
from isthmus.maps.gcv import GcvRidgeFitter
from isthmus.maps.identity import identity_map
from isthmus.maps.kernel import KernelMap, KernelRidgeFitter
from isthmus.maps.moments import PairMoments
from isthmus.maps.procrustes import ProcrustesFitter
from isthmus.maps.quality import (
    held_out_quality,
    held_out_quality_on_pairs,
    held_out_quality_on_rows,
)
from isthmus.maps.reduced_rank import ReducedRankFitter
from isthmus.maps.relative import RelativeFitter
from isthmus.maps.residual import ResidualFitter, ResidualMap
from isthmus.maps.ridge import RidgeFitter
from isthmus.maps.robust import (
    ClippedRidgeFitter,
    HuberRidgeFitter,
    NormClip,
    TrimmedRidgeFitter,
)
from isthmus.maps.rows import PairedRows, Pairs, in_memory, moments_of
from isthmus.maps.whitened import (
    PrincipalComponentFitter,
    StandardisedRidgeFitter,
    WhitenedProcrustesFitter,
)

__all__ = [
    "ActivationMap",
    "AffineMap",
    "AutoencoderMap",
    "AutoencoderSettings",
    "BidirectionalFitter",
    "BothWays",
    "ClippedRidgeFitter",
    "FittedMap",
    "GcvRidgeFitter",
    "HuberRidgeFitter",
    "KernelMap",
    "KernelRidgeFitter",
    "MapQuality",
    "MapScore",
    "MomentFitter",
    "NormClip",
    "PairMoments",
    "PairedRows",
    "Pairs",
    "PrincipalComponentFitter",
    "ProcrustesFitter",
    "ReducedRankFitter",
    "RelativeFitter",
    "ResidualFitter",
    "ResidualMap",
    "RidgeFitter",
    "RowFitter",
    "StandardisedRidgeFitter",
    "TrimmedRidgeFitter",
    "TwoWayFitter",
    "TwoWayMoments",
    "WhitenedProcrustesFitter",
    "choose_map",
    "errors_by_text",
    "fit_autoencoder",
    "held_out_quality",
    "held_out_quality_on_pairs",
    "held_out_quality_on_rows",
    "identity_map",
    "in_memory",
    "load_map",
    "moments_of",
    "save_map",
    "shuffled_rows",
    "train_autoencoder",
]
