"""Which interventions of a sweep go through a model together, and how they lie side by side."""

from collections.abc import Sequence

import torch

from isthmus.core.edits import PlacedEdit
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.noise import GaussianNoise
from isthmus.interventions.per_row import merge_rows


def pack(
    layers: dict[int, int], most: int, n_tokens: int, n_layers: int, pass_in_tokens: int
) -> list[list[int]]:
    """Decides which cells go through a model together.

    A pass starts at the lowest of its cells. Cells that start higher join where the blocks that
    they run in vain cost less than calling all their blocks once more.

    Args:
        layers: For every cell the block above which it could start; -1 for the embeddings.
        most: Most cells in a pass.
        n_tokens: Tokens that a cell adds to a pass.
        n_layers: Blocks of the model.
        pass_in_tokens: How many tokens through a block cost as much as calling it.

    Returns:
        Cells pass by pass, lower blocks first.

    >>> pack({0: 3, 1: 3, 2: 0}, 8, 1000, 8, 100)
    [[2], [0, 1]]
    >>> pack({0: 3, 1: 3, 2: 0}, 8, 1, 8, 100)
    [[2, 0, 1]]
    """
    passes: list[list[int]] = []
    by_layer: dict[int, list[int]] = {}
    for cell in sorted(layers, key=lambda cell: layers[cell]):
        by_layer.setdefault(layers[cell], []).append(cell)
    for layer, cells in by_layer.items():
        if passes and len(passes[-1]) + len(cells) <= most:
            in_vain = (layer - layers[passes[-1][0]]) * len(cells) * n_tokens
            if in_vain < (n_layers - 1 - layer) * pass_in_tokens:
                passes[-1] += cells
                continue
        passes += [cells[i : i + most] for i in range(0, len(cells), most)]
    return passes


def by_positions(interventions: Sequence[Intervention]) -> list[list[int]]:
    """Groups interventions whose passes may begin at the same token.

    Args:
        interventions: What is done.

    Returns:
        Indices of interventions, group by group.
    """
    groups: dict[tuple[str, bool], list[int]] = {}
    for cell, one in enumerate(interventions):
        key = (one.positions.spelling, needs_whole_batches(one))
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def needs_whole_batches(intervention: Intervention) -> bool:
    """Says whether what an edit does depends on the shape of what it is given."""
    edits = (edit for site in intervention.edits.values() for edit in site)
    return any(isinstance(edit, GaussianNoise) for edit in edits)


def side_by_side(placed: Sequence[Sequence[PlacedEdit]], n_rows: int) -> tuple[PlacedEdit, ...]:
    """Joins edits of copies of a batch to edits of one batch that holds all copies.

    Args:
        placed: Edits of every copy.
        n_rows: Rows of a copy.

    Returns:
        Edits whose rows are those of the first copy, then those of the next.
    """
    rows = [
        [
            PlacedEdit(e.site, e.edit, e.given[row : row + 1], e.generated[row : row + 1])
            for e in copy
        ]
        for copy in placed
        for row in range(n_rows)
    ]
    return tuple(merge_rows(rows))


def n_edited_in(placed: Sequence[PlacedEdit]) -> int:
    """Counts (position, site) pairs that some edits reach.

    Args:
        placed: Edits of one batch.

    Returns:
        Pairs; one that several edits reach counts once.
    """
    sites = {one.site for one in placed}
    masks = [torch.stack([e.given for e in placed if e.site == site]).any(0) for site in sites]
    return sum(int(mask.sum()) for mask in masks)
