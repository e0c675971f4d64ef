"""The map that learns nothing: coordinates are copied, as a control."""

import torch

from isthmus.core.errors import ShapeError
from isthmus.maps.base import AffineMap


def identity_map(d_source: int, d_target: int) -> AffineMap:
    """Makes the map that copies coordinate i to coordinate i.

    Args:
        d_source: Width of the source points, at least 1.
        d_target: Width of the target points, at least 1.

    Returns:
        y = x for equal widths; a wider target is filled with zeros, a narrower one gets the first
        coordinates only.

    Raises:
        ShapeError: If a width is below 1.
    """
    if min(d_source, d_target) < 1:
        raise ShapeError(f"no map {d_source} → {d_target}: widths start at 1")
    return AffineMap(
        torch.eye(d_source, d_target), torch.zeros(d_source), torch.zeros(d_target), "identity"
    )
