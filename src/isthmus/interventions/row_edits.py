"""Edits whose parameters differ from row to row of one batch, each done as one operation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import Edit, depends_on_shape
from isthmus.core.errors import ShapeError
from isthmus.interventions.ablation import DirectionalAblation
from isthmus.interventions.addition import Addition, scaled_back
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.checks import working_dtype
from isthmus.interventions.coordinate import SetCoordinate
from isthmus.interventions.replacement import Replacement

E = TypeVar("E", bound=Edit)

Span = tuple[int, int]
"""First and one-past-last column of a row's own tokens in a padded batch."""


@dataclass(frozen=True, eq=False)
class _ByRow(Generic[E]):
    """One edit of a kind, or none, for every row of a batch.

    Rows without an edit come out as they may: whoever places it masks them.
    """

    edits: tuple[E | None, ...]
    _kept: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        widths = {row: edit.d_model for row, edit in enumerate(self.edits) if edit is not None}
        if not widths:
            raise ShapeError("edits by row without one: give at least one row an edit")
        if len(set(widths.values())) > 1:
            raise ShapeError(
                f"edits of rows have widths {widths}: all rows are of one model, carry every "
                "direction to it first"
            )

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return next(edit.d_model for edit in self.edits if edit is not None)

    def _tensors(
        self, like: Tensor, make: Callable[[torch.dtype], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Returns what `make` gives in the working type of some activations, on their device."""
        device, dtype = like.device, working_dtype(like)
        if (device, dtype) not in self._kept:
            # A step of a generation must not copy them to the accelerator again, and later passes
            # may need gradients.
            with torch.inference_mode(mode=False):
                self._kept[device, dtype] = tuple(one.to(device) for one in make(dtype))
        return self._kept[device, dtype]

    def _vectors(
        self, dtype: torch.dtype, vector: Callable[[E], Tensor]
    ) -> Float[Tensor, "batch 1 d_model"]:
        nothing = torch.zeros(self.d_model, dtype=dtype)
        rows = [
            nothing if edit is None else vector(edit).detach().to("cpu", dtype)
            for edit in self.edits
        ]
        return torch.stack(rows)[:, None]

    def _numbers(
        self, dtype: torch.dtype, number: Callable[[E], float]
    ) -> Float[Tensor, "batch 1 1"]:
        rows = [0.0 if edit is None else number(edit) for edit in self.edits]
        return torch.tensor(rows, dtype=dtype)[:, None, None]


class AdditionsByRow(_ByRow[Addition]):
    """Adds a vector of its own to every row, h[b] + strength[b] · v[b].

    Attributes:
        edits: The addition of every row, or None; all of them keep norms, or none does.
    """

    edits: tuple[Addition | None, ...]

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Returns `activations` with every row's scaled vector added at every position.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        (offsets,) = self._tensors(activations, self._offsets)
        states = activations.to(offsets.dtype)
        moved = states + offsets
        if any(edit is not None and edit.keeps_norm for edit in self.edits):
            moved = scaled_back(moved, states)
        return moved.to(activations.dtype)

    def _offsets(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        vectors = self._vectors(dtype, lambda one: one.vector)
        return (self._numbers(dtype, lambda one: one.strength) * vectors,)


class CoordinatesByRow(_ByRow[SetCoordinate | DirectionalAblation]):
    """Moves every row's coordinate along its own direction, h + strength[b] · (c[b] - h·r[b]) r[b].

    A directional ablation is the case c = 0 with strength 1.

    Attributes:
        edits: What every row does, or None.
    """

    edits: tuple[SetCoordinate | DirectionalAblation | None, ...]

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Returns `activations` with every row moved along its direction.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        directions, wanted, strengths = self._tensors(activations, self._parts)
        points = activations.to(directions.dtype)
        missing = strengths * (wanted - points @ directions.mT)
        return (points + missing * directions).to(activations.dtype)

    def _parts(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (
            self._vectors(dtype, lambda one: one.unit_direction),
            self._numbers(
                dtype, lambda one: one.coordinate if isinstance(one, SetCoordinate) else 0.0
            ),
            self._numbers(
                dtype, lambda one: one.strength if isinstance(one, SetCoordinate) else 1.0
            ),
        )


class ReplacementsByRow(_ByRow[Replacement]):
    """Overwrites every row with a value of its own, h[b] := value[b].

    Attributes:
        edits: The replacement of every row, or None.
    """

    edits: tuple[Replacement | None, ...]

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Returns every row's value at every position.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same shape and type.
        """
        (values,) = self._tensors(
            activations, lambda dtype: (self._vectors(dtype, lambda one: one.value),)
        )
        return values.to(activations.dtype).expand_as(activations).clone()


class AffinesByRow(_ByRow[AffineEdit]):
    """Adds a low-rank function of its own to every row, h + strength[b] · ((h - m) A B + b).

    Narrow factors are filled up with zeros, which add nothing.

    Attributes:
        edits: The affine edit of every row, or None; each has both factors.
    """

    edits: tuple[AffineEdit | None, ...]

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Returns `activations` plus every row's scaled function of them.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        down, up, means, biases, strengths = self._tensors(activations, self._parts)
        points = activations.to(down.dtype)
        change = (points - means) @ down @ up + biases
        return (points + strengths * change).to(activations.dtype)

    def _parts(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        rank = max(edit.rank for edit in self.edits if edit is not None)
        down = torch.zeros(len(self.edits), self.d_model, rank, dtype=dtype)
        up = torch.zeros(len(self.edits), rank, self.d_model, dtype=dtype)
        for row, edit in enumerate(self.edits):
            if edit is not None and edit.up is not None:
                down[row, :, : edit.rank] = edit.down.detach()
                up[row, : edit.rank] = edit.up.detach()
        return (
            down,
            up,
            self._vectors(dtype, lambda one: one.mean),
            self._vectors(dtype, lambda one: one.bias),
            self._numbers(dtype, lambda one: one.strength),
        )


class StrengthsByRow(_ByRow[AffineEdit]):
    """Adds one affine function to all rows, to each as strongly as it says.

    Attributes:
        edits: The affine edit of every row, or None; all have the same factors, mean and bias.
    """

    edits: tuple[AffineEdit | None, ...]

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Returns `activations` plus the function of them times every row's strength.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        (strengths,) = self._tensors(
            activations, lambda dtype: (self._numbers(dtype, lambda one: one.strength),)
        )
        shared = next(edit for edit in self.edits if edit is not None)
        wide = activations.to(strengths.dtype)
        return (wide + strengths * shared.change(activations)).to(activations.dtype)


@dataclass(frozen=True, eq=False)
class EachRow(_ByRow[Edit]):
    """Gives every row to an edit of its own, one after the other: for edits of any kind.

    A row's edit sees the row's own tokens without padding, as it does when the row runs alone.

    Attributes:
        edits: The edit of every row, or None.
        spans: Where the tokens of every row are in the batch that is given; None for no padding.
        width: How many positions that batch has.
    """

    edits: tuple[Edit | None, ...]
    spans: Sequence[Span] | None = None
    width: int = 0

    @property
    def depends_on_shape(self) -> bool:
        """Whether the edit of one of the rows does."""
        return any(edit is not None and depends_on_shape(edit) for edit in self.edits)

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Returns `activations` with every row as its own edit leaves it.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        edited = activations.clone()
        n_new = activations.shape[1] - self.width
        for row, edit in enumerate(self.edits):
            start, stop = 0, activations.shape[1]
            # A shorter pass holds generated tokens alone.
            if self.spans is not None and n_new >= 0:
                start, stop = self.spans[row][0], self.spans[row][1] + n_new
            if edit is not None:
                own = edit(activations[row : row + 1, start:stop])
                edited[row, start:stop] = own[0].to(edited.dtype)
        return edited
