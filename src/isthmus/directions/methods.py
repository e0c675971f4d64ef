"""Every method by name, and the one function that learns the direction of a site."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from isthmus.core.options import require_word
from isthmus.directions.classes import checked_classes
from isthmus.directions.direction import SiteDirection
from isthmus.directions.mean_difference import mean_difference
from isthmus.directions.pca import principal_difference
from isthmus.directions.probe import probe_direction


@runtime_checkable
class DirectionMethod(Protocol):
    """A function from the states of two classes to one vector per position."""

    def __call__(
        self,
        positive: Float[Tensor, "positive_prompt position d_model"],
        negative: Float[Tensor, "negative_prompt position d_model"],
        *,
        pooled: bool,
    ) -> Float[Tensor, "out_position d_model"]:
        """Returns vectors from the negative to the positive class, in activation units."""
        ...


METHODS: Mapping[str, DirectionMethod] = MappingProxyType(
    {"mean_difference": mean_difference, "pca": principal_difference, "probe": probe_direction}
)


def learn_site_direction(
    method: str,
    positive: Float[Tensor, "positive_prompt position d_model"],
    negative: Float[Tensor, "negative_prompt position d_model"],
    *,
    pooled: bool,
) -> SiteDirection:
    """Learns the direction of one site from the states of both classes.

    Refuses empty classes, and unequal ones for `pca` (`DataError`), unequal positions or widths
    (`ShapeError`), states that are not finite (`NonFiniteError`), vectors that come out zero and
    probes that do not converge (`FitError`).

    Args:
        method: One of `METHODS`.
        positive: States that show the behaviour; left unchanged.
        negative: States that do not, at as many positions; for `pca` row by row their twins.
        pooled: Whether all positions share one vector; their states are then listed as one
            position.

    Returns:
        Float32 vectors, means and states on the CPU.

    Raises:
        ConfigError: If there is no such method.
    """
    require_word("direction method", method, tuple(METHODS))
    classes = checked_classes(positive, negative, pooled=pooled)
    vectors = METHODS[method](positive, negative, pooled=pooled)
    return SiteDirection(vectors=vectors.float().cpu(), **classes.kept)
