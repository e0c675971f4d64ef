"""Maps from one model's activation space to another's: fitted mutably, held frozen."""

from isthmus.maps.autoencoder import AutoencoderMap, AutoencoderSettings, fit_autoencoder
from isthmus.maps.base import ActivationMap, AffineMap, MapQuality
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.files import FittedMap, load_map, save_map
from isthmus.maps.identity import identity_map
from isthmus.maps.moments import PairMoments
from isthmus.maps.procrustes import ProcrustesFitter
from isthmus.maps.quality import held_out_quality, held_out_quality_on_rows
from isthmus.maps.reduced_rank import ReducedRankFitter
from isthmus.maps.ridge import RidgeFitter

__all__ = [
    "ActivationMap",
    "AffineMap",
    "AutoencoderMap",
    "AutoencoderSettings",
    "FittedMap",
    "MapQuality",
    "PairMoments",
    "ProcrustesFitter",
    "ReducedRankFitter",
    "RidgeFitter",
    "fit_autoencoder",
    "held_out_quality",
    "held_out_quality_on_rows",
    "identity_map",
    "load_map",
    "save_map",
    "shuffled_rows",
]
