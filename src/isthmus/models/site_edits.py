"""The edits of one site during forward passes, and how many positions they reached."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ShapeError
from isthmus.core.sites import Site
from isthmus.models.chunks import Chunk
from isthmus.models.layouts import ModelLayout
from isthmus.models.live_rows import LiveRows


@dataclass
class EditCount:
    """How many (position, site) pairs were edited so far.

    A position that is computed again, as without a key-value cache, counts once; so does one at
    which several edits of a site act.

    Attributes:
        rows_by_site: Edited positions per site, row by row.
    """

    rows_by_site: dict[Site, Int[Tensor, " batch"]] = field(default_factory=dict)

    @property
    def by_site(self) -> dict[Site, int]:
        """Edited positions per site."""
        return {site: int(rows.sum()) for site, rows in self.rows_by_site.items()}

    @property
    def total(self) -> int:
        """Edited positions, summed over sites."""
        return sum(self.by_site.values())

    def by_row(self, n_rows: int) -> list[int]:
        """Returns the edited positions of every row, summed over sites.

        Args:
            n_rows: How many rows the batch has.

        Returns:
            One number per row.
        """
        rows = torch.zeros(n_rows, dtype=torch.long)
        for at_site in self.rows_by_site.values():
            rows = rows + at_site
        return list(rows.tolist())


@dataclass(frozen=True)
class _Plan:
    """What to do in passes that compute some columns: edits that reach one of them, with masks.

    A mask of None is everywhere. `is_edited` says for the whole site where any edit acts.
    """

    edits: tuple[tuple[PlacedEdit, Tensor | None], ...]
    is_edited: Tensor


class SiteEdits:
    """The edits of one site as a visitor of its activations.

    What depends on masks alone is worked out once for the given positions and once for all that
    follow, so that a step of a generation asks for no more than its edits.

    Args:
        site: Where.
        edits: What to do, in this order.
        chunk: Kept up to date with the positions that the model computes.
        count: Told what was edited.
    """

    def __init__(
        self, site: Site, edits: Sequence[PlacedEdit], chunk: Chunk, count: EditCount
    ) -> None:
        self.site = site
        self.edits = tuple(edits)
        self.chunk = chunk
        self.count = count
        self.n_seen = 0
        # Whether a chunk needs any work is decided on the host, without waiting for the
        # accelerator.
        self.given = [one.given.cpu() for one in edits]
        self.generated = [one.generated.cpu() for one in edits]
        self.n_given = self.given[0].shape[1]
        self.live = chunk.live or LiveRows(len(self.generated[0]))
        self.rows = torch.zeros(len(self.generated[0]), dtype=torch.long)
        self.plan: tuple[tuple[int, int], _Plan] | None = None

    def __call__(self, value: Tensor) -> Tensor | None:
        """Returns the edited activations, or None where no edit acts.

        Args:
            value: Activations of the positions of the chunk; left unchanged.

        Returns:
            A new tensor of the same shape and type, or None.
        """
        plan = self._plan(value.device)
        self._add_to_count(plan)
        if not plan.edits:
            return None
        x = self.chunk.view(value)
        if self.live.is_whole:
            return _edited(plan, x).reshape(value.shape)
        return self.live.gathered(_edited(plan, self.live.spread(x))).reshape(value.shape)

    def _plan(self, device: torch.device) -> _Plan:
        chunk = self.chunk
        # Behind the given positions every column is like every other.
        is_beyond = chunk.offset >= self.n_given
        key = (-1, -1) if is_beyond else (chunk.offset, chunk.width)
        if self.plan is None or self.plan[0] != key:
            # Kept for later passes, which may need gradients.
            with torch.inference_mode(mode=False):
                masks = [self._mask(index, is_beyond=is_beyond) for index in range(len(self.edits))]
                self.plan = key, self._planned(masks, device)
        return self.plan[1]

    def _mask(self, index: int, *, is_beyond: bool) -> Bool[Tensor, "batch pos"]:
        generated = self.generated[index][:, None]
        if is_beyond:
            return generated
        start, width = self.chunk.offset, self.chunk.width
        known = self.given[index][:, start : start + width]
        return torch.cat([known, generated.expand(-1, width - known.shape[1])], dim=1)

    def _planned(self, masks: Sequence[Tensor], device: torch.device) -> _Plan:
        edits = [
            (placed, None if bool(mask.all()) else mask[..., None].to(device))
            for placed, mask in zip(self.edits, masks, strict=True)
            if bool(mask.any())
        ]
        return _Plan(tuple(edits), torch.stack(list(masks)).any(0))

    def _add_to_count(self, plan: _Plan) -> None:
        start, end = self.chunk.offset, self.chunk.offset + self.chunk.width
        n_known = max(0, self.n_seen - start)
        if plan.edits and n_known < self.chunk.width:
            new = plan.is_edited.expand(-1, self.chunk.width)[:, n_known:]
            n_new = new.sum(1)
            self.rows = self.rows + (n_new if self.live.is_whole else n_new * self.live.mask)
        self.count.rows_by_site[self.site] = self.rows
        self.n_seen = max(self.n_seen, end)


def check_edits(layout: ModelLayout, edits: Sequence[PlacedEdit]) -> None:
    """Refuses edits that fit neither the model nor each other.

    Args:
        layout: The model.
        edits: What is to be done to it.

    Raises:
        ShapeError: If an edit has another width than the model, or masks have different shapes.
    """
    for placed in edits:
        layout.module_at(placed.site)
        if placed.edit.d_model != layout.d_model:
            raise ShapeError(
                f"the edit at {placed.site} has width {placed.edit.d_model}, "
                f"the model {layout.d_model}: carry it through a map first"
            )
        shape = placed.given.shape
        if shape != edits[0].given.shape or placed.generated.shape[0] != shape[0]:
            raise ShapeError(
                f"the edit at {placed.site} has masks {tuple(shape)} and "
                f"{tuple(placed.generated.shape)}, expected {tuple(edits[0].given.shape)} and one "
                "per row: place all edits on the same batch"
            )


def check_chunk(given: torch.Size, chunk: Chunk) -> None:
    """Refuses a pass over other rows than the masks have, or a first pass over fewer positions.

    Args:
        given: Shape of the masks.
        chunk: What the pass computes.

    Raises:
        ShapeError: If the pass does not fit.
    """
    n_rows = given[0] if chunk.live is None else len(chunk.live.rows)
    if chunk.batch != n_rows:
        raise ShapeError(
            f"the model is run on {chunk.batch} rows, the masks are for {n_rows}: "
            "place the edits on the batch that is run"
        )
    if chunk.offset == 0 and chunk.width < given[1]:
        raise ShapeError(
            f"the first forward pass has {chunk.width} positions, the masks {given[1]}: "
            "run the whole batch at once, with a key-value cache that knows its length"
        )


def _edited(plan: _Plan, x: Tensor) -> Tensor:
    for placed, mask in plan.edits:
        edited = placed.edit(x)
        _check_edited(placed, edited, x)
        edited = edited.to(x.dtype)
        x = edited if mask is None else torch.where(mask, edited, x)
    return x


def _check_edited(placed: PlacedEdit, edited: Tensor, x: Tensor) -> None:
    if edited.shape != x.shape:
        raise ShapeError(
            f"the edit at {placed.site} returned {tuple(edited.shape)} for activations of "
            f"{tuple(x.shape)}: an edit keeps the shape"
        )
