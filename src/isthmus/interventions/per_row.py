"""A different intervention, or none, for every row of one batch."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool
from torch import Tensor

from isthmus.core.edits import Edit, PlacedEdit
from isthmus.core.errors import DataError, NoEditError, ShapeError
from isthmus.core.texts import TokenBatch
from isthmus.interventions.ablation import DirectionalAblation
from isthmus.interventions.addition import Addition
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.coordinate import SetCoordinate
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.replacement import Replacement
from isthmus.interventions.row_edits import (
    AdditionsByRow,
    AffinesByRow,
    CoordinatesByRow,
    EachRow,
    ReplacementsByRow,
    Span,
    StrengthsByRow,
)

MAX_STACKED_RANK = 128
"""Largest rank of affine edits whose factors are copied side by side for a batch."""


@dataclass(frozen=True)
class PerRow:
    """An intervention, or none, for every text of one call.

    Its `place` is handed to `generate_greedy`, `answer_nll` and the rest like an intervention's. A
    row comes out as it does alone; a row without an intervention keeps its bits.

    Attributes:
        interventions: One per text, in the order of the texts.
    """

    interventions: tuple[Intervention | None, ...]

    def place(self, batch: TokenBatch) -> list[PlacedEdit]:
        """Finds the positions of one batch at which every row's edits apply.

        What `Intervention.place` refuses is refused here, too.

        Args:
            batch: Some of the texts, padded on either side; its `indices` say which.

        Returns:
            Placed edits by site; rows that do the same kind of thing share one.

        Raises:
            DataError: If a text has no entry in `interventions`.
        """
        beyond = [index for index in batch.indices if index >= len(self.interventions)]
        if beyond:
            raise DataError(
                f"{len(self.interventions)} interventions, none for text {beyond[0]}: give one per "
                "text, None for a text that is left alone"
            )
        return place_rows([self.interventions[index] for index in batch.indices], batch)

    def only_where(self, is_open: Sequence[bool]) -> "PerRow":
        """Returns the same without the interventions of texts that a gate keeps closed.

        Args:
            is_open: For every text whether it keeps its intervention.

        Returns:
            None in the place of every other intervention.

        Raises:
            DataError: If there are not as many as interventions.
        """
        if len(is_open) != len(self.interventions):
            raise DataError(
                f"a gate over {len(is_open)} texts for {len(self.interventions)} interventions: "
                "ask it about the same texts"
            )
        pairs = zip(self.interventions, is_open, strict=True)
        return PerRow(tuple(one if opened else None for one, opened in pairs))

    def require_edits(self, n_edited_by_text: Sequence[int]) -> None:
        """Refuses results of a call in which an intervention edited nothing.

        Args:
            n_edited_by_text: Edited positions of every text, as results of such calls hold them.

        Raises:
            DataError: If there are not as many as interventions.
            NoEditError: If a text with an intervention has none; the message names all of them.
        """
        if len(n_edited_by_text) != len(self.interventions):
            raise DataError(
                f"{len(self.interventions)} interventions for {len(n_edited_by_text)} texts: give "
                "one per text, None for a text that is left alone"
            )
        pairs = enumerate(zip(self.interventions, n_edited_by_text, strict=True))
        idle = [(i, one) for i, (one, n) in pairs if one is not None and not n]
        if idle:
            named = "; ".join(f"row {i} at {one.positions.spelling}" for i, one in idle)
            raise NoEditError(
                f"interventions that edited nothing: {named}. Choose other positions, name the "
                "trigger, or give these rows no intervention"
            )


def place_rows(interventions: Sequence[Intervention | None], batch: TokenBatch) -> list[PlacedEdit]:
    """Places a different intervention, or none, on every row of a batch.

    Args:
        interventions: One per row.
        batch: Texts padded on either side.

    Returns:
        Placed edits by site; rows that do the same kind of thing share one. Edits of one row keep
        their order.

    Raises:
        DataError: If there are not as many interventions as rows.
    """
    if len(interventions) != len(batch.texts):
        raise DataError(
            f"{len(interventions)} interventions for {len(batch.texts)} rows: give one per row, "
            "None for a row that is left alone"
        )
    placed = [
        [] if one is None else one.place(_one_row(batch, row))
        for row, one in enumerate(interventions)
    ]
    ends = zip(batch.texts, batch.offsets, strict=True)
    return merge_rows(placed, [(offset, offset + len(text)) for text, offset in ends])


def merge_rows(
    placed: Sequence[Sequence[PlacedEdit]], spans: Sequence[Span] | None = None
) -> list[PlacedEdit]:
    """Makes edits of a batch from edits that were placed on each of its rows alone.

    Args:
        placed: For every row its edits, with masks of one row and of one width.
        spans: Where the tokens of every row are; None where nothing is padding.

    Returns:
        Placed edits by site; rows that do the same kind of thing share one. Edits of one row keep
        their order.

    Raises:
        ShapeError: If edits are not placed on one row each, or their masks have different widths.
    """
    shapes = {tuple(one.given.shape) for row in placed for one in row}
    if len(shapes) > 1 or any(shape[0] != 1 for shape in shapes):
        raise ShapeError(
            f"edits of single rows have masks {sorted(shapes)}: place each on a batch of one row, "
            "all padded to one width"
        )
    merged: list[PlacedEdit] = []
    for site in dict.fromkeys(one.site for row in placed for one in row):
        waiting = [[one for one in row if one.site == site] for row in placed]
        while any(waiting):
            # The kind that most rows wait for; what a row does afterwards waits for its turn.
            kinds = Counter(_kind(row[0].edit) for row in waiting if row)
            kind = kinds.most_common(1)[0][0]
            taken = [row.pop(0) if row and _kind(row[0].edit) == kind else None for row in waiting]
            merged.append(_merged(taken, spans))
    return merged


def _one_row(batch: TokenBatch, row: int) -> TokenBatch:
    here = slice(row, row + 1)
    return TokenBatch(
        batch.texts[here],
        batch.token_ids[here],
        batch.is_real[here],
        batch.offsets[here],
        batch.indices[here],
    )


def _kind(edit: Edit) -> Hashable:
    """Returns what edits that can be done in one operation have in common."""
    if isinstance(edit, Addition):
        return "addition", edit.keeps_norm
    if isinstance(edit, (SetCoordinate, DirectionalAblation)):
        return "coordinate"
    if isinstance(edit, Replacement):
        return "replacement"
    if isinstance(edit, AffineEdit):
        if edit.up is not None and edit.rank <= MAX_STACKED_RANK:
            return "affine"
        return "affine", *map(id, (edit.down, edit.up, edit.mean, edit.bias))
    return "any"


def _merged(taken: Sequence[PlacedEdit | None], spans: Sequence[Span] | None) -> PlacedEdit:
    first = next(one for one in taken if one is not None)
    width = first.given.shape[1]
    edits = tuple(None if one is None else one.edit for one in taken)
    return PlacedEdit(
        first.site,
        _edit_of_rows(first.edit, edits, spans, width),
        _rows_of([None if one is None else one.given for one in taken], first.given),
        _rows_of([None if one is None else one.generated for one in taken], first.generated),
    )


def _edit_of_rows(
    first: Edit, edits: tuple[Edit | None, ...], spans: Sequence[Span] | None, width: int
) -> Edit:
    if all(edit is None or edit is first for edit in edits) and _kind(first) != "any":
        return first
    if isinstance(first, Addition):
        return AdditionsByRow(cast("tuple[Addition | None, ...]", edits))
    if isinstance(first, (SetCoordinate, DirectionalAblation)):
        return CoordinatesByRow(
            cast("tuple[SetCoordinate | DirectionalAblation | None, ...]", edits)
        )
    if isinstance(first, Replacement):
        return ReplacementsByRow(cast("tuple[Replacement | None, ...]", edits))
    if isinstance(first, AffineEdit):
        by_row = AffinesByRow if _kind(first) == "affine" else StrengthsByRow
        return by_row(cast("tuple[AffineEdit | None, ...]", edits))
    return EachRow(edits, spans, width)


def _rows_of(
    masks: Sequence[Bool[Tensor, "..."] | None], like: Bool[Tensor, "..."]
) -> Bool[Tensor, "..."]:
    """Stacks masks of single rows, with a false one for every row without."""
    nothing = torch.zeros_like(like)
    return torch.cat([nothing if mask is None else mask for mask in masks])
