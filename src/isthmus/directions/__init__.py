"""Directions: what separates two classes of prompts at a site, learned from their activations."""

from isthmus.directions.direction import Direction, SiteDirection
from isthmus.directions.files import load_direction, save_direction
from isthmus.directions.methods import METHODS, DirectionMethod, learn_site_direction
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import Probe, fit_probe
from isthmus.directions.probe_files import load_probe, save_probe

__all__ = [
    "METHODS",
    "Direction",
    "DirectionMethod",
    "ModelProbe",
    "Probe",
    "SiteDirection",
    "fit_probe",
    "learn_site_direction",
    "load_direction",
    "load_probe",
    "save_direction",
    "save_probe",
]
