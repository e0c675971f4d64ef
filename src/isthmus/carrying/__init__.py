"""What travels from the source to the target: directions, subspaces, norms and coordinates."""

from isthmus.carrying.chains import at_several_sites, average_directions, carry_along, steps_of
from isthmus.carrying.coordinates import CoordinateTargets, coordinate_targets
from isthmus.carrying.directions import TransferRule, carry_direction
from isthmus.carrying.model_probes import carry_probe, carry_probe_along
from isthmus.carrying.scaling import cosine, match_norm, random_direction_like
from isthmus.carrying.subspaces import carry_subspace, random_subspace_like

__all__ = [
    "CoordinateTargets",
    "TransferRule",
    "at_several_sites",
    "average_directions",
    "carry_along",
    "carry_direction",
    "carry_probe",
    "carry_probe_along",
    "carry_subspace",
    "coordinate_targets",
    "cosine",
    "match_norm",
    "random_direction_like",
    "random_subspace_like",
    "steps_of",
]
