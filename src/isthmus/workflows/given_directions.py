"""A direction or a subspace as verbs are given it: a value or a folder."""

from pathlib import Path

from isthmus.core.artifacts import kind_at
from isthmus.directions.direction import Direction
from isthmus.directions.files import load_direction_or_subspace
from isthmus.directions.subspace import Subspace

GivenDirection = Direction | Subspace | str | Path
"""A direction or a subspace, or its folder."""


def loaded_direction(given: GivenDirection) -> Direction | Subspace:
    """Returns what was given, read from its folder if need be; refuses anything else there."""
    if isinstance(given, Direction | Subspace):
        return given
    return load_direction_or_subspace(Path(given))


def kind_of_given(given: GivenDirection) -> str:
    """Returns the kind of artifact that was given; where there is none, that of a direction."""
    if isinstance(given, Direction | Subspace):
        return given.WHAT
    return kind_at(Path(given)) or Direction.WHAT
