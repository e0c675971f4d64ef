"""What travels from the source to the target: directions, their norms and their coordinates."""

from isthmus.transfer.coordinates import CoordinateTargets, coordinate_targets
from isthmus.transfer.directions import TransferRule, carry_direction
from isthmus.transfer.scaling import cosine, match_norm, random_direction_like

__all__ = [
    "CoordinateTargets",
    "TransferRule",
    "carry_direction",
    "coordinate_targets",
    "cosine",
    "match_norm",
    "random_direction_like",
]
