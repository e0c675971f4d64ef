"""Overwrites every position of one padded batch with a state of its own."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.core.sites import Site


@dataclass(frozen=True, eq=False)
class RowReplacement:
    """Overwrites positions with given rows, h[b, p] := rows[b, p] where the mask is true.

    It knows one padded batch and no other: a pass over another shape, such as the single new token
    of a cached generation, is refused. With the rows that stood there anyway nothing changes.

    Attributes:
        rows: What stands there afterwards, in activation units; ignored where the mask is false.
        is_replaced: Which positions are overwritten; never padding.

    Raises:
        ShapeError: If rows and mask do not fit together, or rows are not floating-point numbers.
        NonFiniteError: If a row that will be used holds NaN or infinity.
    """

    rows: Float[Tensor, "batch pos d_model"]
    is_replaced: Bool[Tensor, "batch pos"]

    def __post_init__(self) -> None:
        rows, mask = self.rows, self.is_replaced
        if rows.ndim != 3 or not rows.is_floating_point() or rows.shape[:2] != mask.shape:
            raise ShapeError(
                f"rows of shape {list(rows.shape)} and type {rows.dtype} with a mask of "
                f"{list(mask.shape)}: expected floating-point rows [batch, pos, d_model] and a "
                "mask [batch, pos]"
            )
        if not bool(torch.isfinite(rows[mask]).all()):
            raise NonFiniteError(
                "rows to put in hold NaN or infinity: map finite activations, with a finite map"
            )

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.rows.shape[2]

    def __call__(
        self, activations: Float[Tensor, "batch pos {self.d_model}"]
    ) -> Float[Tensor, "batch pos {self.d_model}"]:
        """Returns the rows where the mask is true and `activations` elsewhere.

        Args:
            activations: Residual stream of the whole batch, any floating-point type; left
                unchanged.

        Returns:
            New tensor of the same shape and type.

        Raises:
            ShapeError: If the activations are of another batch or of a part of it.
        """
        if activations.shape != self.rows.shape:
            raise ShapeError(
                f"activations of shape {list(activations.shape)}, rows for "
                f"{list(self.rows.shape)}: run the whole padded batch at once, without a cache"
            )
        rows = self.rows.to(activations.device, activations.dtype)
        return torch.where(self.is_replaced.to(activations.device)[..., None], rows, activations)

    def from_column(self, start: int) -> "RowReplacement":
        """Returns the replacement of the batch's positions from one on.

        Args:
            start: The first of them, from 0.

        Returns:
            A replacement that knows the rest of the batch and nothing else.
        """
        return RowReplacement(self.rows[:, start:], self.is_replaced[:, start:])

    def at(self, site: Site) -> PlacedEdit:
        """Returns the edit placed at a site of its batch, at the positions of its mask."""
        generated = self.is_replaced.new_zeros(len(self.is_replaced))
        return PlacedEdit(site, self, self.is_replaced, generated)


def take_earlier_rows(
    rows: Float[Tensor, "pos d_model"], is_given: Bool[Tensor, " pos"]
) -> tuple[Float[Tensor, "pos d_model"], Bool[Tensor, " pos"]]:
    """Gives every position without a row the row of the nearest earlier position that has one.

    Nothing of a position's own state is left after the first row, so no knowledge of the model
    that is overwritten leaks through its gaps.

    Args:
        rows: States in text order; left unchanged.
        is_given: Which of them are meant.

    Returns:
        All rows, and which positions have one: those from the first given row on.
    """
    places = torch.arange(len(rows), device=rows.device)
    latest = torch.where(is_given, places, -1).cummax(0).values if len(rows) else places
    return rows[latest.clamp_min(0)], latest >= 0
