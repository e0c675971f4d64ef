"""Edits of activations, the positions they apply at, and interventions made of both."""

from isthmus.interventions.ablation import DirectionalAblation
from isthmus.interventions.addition import Addition
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.coordinate import SetCoordinate
from isthmus.interventions.everywhere import ablated_everywhere
from isthmus.interventions.gate import GatedEdit
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.noise import GaussianNoise
from isthmus.interventions.per_row import PerRow, merge_rows, place_rows
from isthmus.interventions.positions import PositionMasks, PositionSelector, parse_positions
from isthmus.interventions.replacement import Replacement
from isthmus.interventions.subspace import subspace_ablation, subspace_coordinates

__all__ = [
    "Addition",
    "AffineEdit",
    "DirectionalAblation",
    "GatedEdit",
    "GaussianNoise",
    "Intervention",
    "PerRow",
    "PositionMasks",
    "PositionSelector",
    "Replacement",
    "SetCoordinate",
    "ablated_everywhere",
    "merge_rows",
    "parse_positions",
    "place_rows",
    "subspace_ablation",
    "subspace_coordinates",
]
