"""What separates two classes of prompts at a site: directions and subspaces from their states."""

from isthmus.directions.direction import Direction, SiteDirection
from isthmus.directions.files import (
    load_direction,
    load_direction_or_subspace,
    load_subspace,
    save_direction,
)
from isthmus.directions.methods import METHODS, DirectionMethod, learn_site_direction
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import Probe, fit_probe
from isthmus.directions.probe_files import load_probe, save_probe
from isthmus.directions.subspace import (
    SiteSubspace,
    Subspace,
    learn_site_subspace,
    subspace_of,
)

__all__ = [
    "METHODS",
    "Direction",
    "DirectionMethod",
    "ModelProbe",
    "Probe",
    "SiteDirection",
    "SiteSubspace",
    "Subspace",
    "fit_probe",
    "learn_site_direction",
    "learn_site_subspace",
    "load_direction",
    "load_direction_or_subspace",
    "load_probe",
    "load_subspace",
    "save_direction",
    "save_probe",
    "subspace_of",
]
