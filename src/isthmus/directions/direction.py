"""The frozen values of this package: a direction at one site, and a direction of a model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from isthmus.core.errors import FitError
from isthmus.directions.learned import LearnedBySite, SiteClasses


@dataclass(frozen=True, eq=False)
class SiteDirection(SiteClasses):
    """What separates the two classes at one site, per position, with the states it came from.

    Attributes:
        WHAT: How messages call it.
        vectors: Directions from the negative (clean) to the positive class (the behaviour), in
            activation units; none is zero.

    Raises:
        FitError: If a vector is zero.
    """

    WHAT: ClassVar[str] = "direction"

    vectors: Float[Tensor, "position d_model"]

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if bool((self.norms == 0).any()):
            zero = torch.nonzero(self.norms == 0).flatten().tolist()
            raise FitError(
                f"a direction is zero at position(s) {zero}: both classes look alike there, "
                "choose other prompts, positions, a later layer or another map"
            )

    @property
    @override
    def norms(self) -> Float[Tensor, " position"]:
        """Norm of every vector, in activation units."""
        norms: Tensor = torch.linalg.vector_norm(self.vectors, dim=-1)
        return norms

    @property
    def unit_vectors(self) -> Float[Tensor, "position d_model"]:
        """The vectors scaled to norm 1."""
        return self.vectors / self.norms[:, None]


@dataclass(frozen=True, eq=False)
class Direction(LearnedBySite[SiteDirection]):
    """A direction of a model: one vector per position, or one for all, at one or more sites."""

    WHAT: ClassVar[str] = "direction"
