"""What passes between the mathematics of an edit and the one place that installs hooks."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.sites import Site


@runtime_checkable
class Edit(Protocol):
    """A pure change of activations; it returns a new tensor and never writes into its input."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        ...

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Returns the edited activations, same shape and dtype."""
        ...


@runtime_checkable
class BatchEdit(Edit, Protocol):
    """An edit that knows every position of one padded batch."""

    def from_column(self, start: int) -> Edit:
        """Returns the same edit for passes that compute the batch's positions from `start` on."""
        ...


def depends_on_shape(edit: Edit) -> bool:
    """Says whether what an edit does to a position depends on how many a pass computes.

    Args:
        edit: Any; one that does says so by an attribute of this name.

    Returns:
        False for edits that say nothing.
    """
    return bool(getattr(edit, "depends_on_shape", False))


@dataclass(frozen=True)
class PlacedEdit:
    """One edit, the site it acts on and the positions of one batch at which it applies.

    Edits of the same site act in the order in which they are given. A per-position direction is
    several placed edits with disjoint masks.

    Attributes:
        site: Where it acts.
        edit: What it does.
        given: Which of the positions handed to the model at first (the padded prompt, or the whole
            padded text when scoring) are edited; never a padding position.
        generated: Which rows are also edited at every position generated after those.
    """

    site: Site
    edit: Edit
    given: Bool[Tensor, "batch pos"]
    generated: Bool[Tensor, " batch"]
