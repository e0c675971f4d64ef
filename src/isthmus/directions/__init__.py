"""Directions: what separates two classes of prompts at a site, learned from their activations."""

from isthmus.directions.direction import Direction, SiteDirection
from isthmus.directions.files import load_direction, save_direction
from isthmus.directions.methods import METHODS, DirectionMethod, learn_site_direction
from isthmus.directions.probe import Probe, fit_probe

__all__ = [
    "METHODS",
    "Direction",
    "DirectionMethod",
    "Probe",
    "SiteDirection",
    "fit_probe",
    "learn_site_direction",
    "load_direction",
    "save_direction",
]
