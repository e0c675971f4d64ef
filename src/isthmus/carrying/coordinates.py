"""Where the two classes lie along a direction."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from isthmus.directions.direction import SiteDirection


class CoordinateTargets(NamedTuple):
    """Coordinates of the class means along the unit direction, per position.

    Attributes:
        positive: Coordinate that shows the behaviour, in activation units.
        negative: Coordinate that does not.
    """

    positive: Float[Tensor, " position"]
    negative: Float[Tensor, " position"]


def coordinate_targets(site_direction: SiteDirection) -> CoordinateTargets:
    """Finds the coordinates to set in order to turn a behaviour on or off, c± = μ± · v / |v|.

    Args:
        site_direction: Direction with its class means.

    Returns:
        One coordinate per position for each class.
    """
    unit = site_direction.unit_vectors
    return CoordinateTargets(
        positive=(site_direction.positive_mean * unit).sum(-1),
        negative=(site_direction.negative_mean * unit).sum(-1),
    )
