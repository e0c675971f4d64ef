"""Reads both models over the same texts and keeps what maps are fitted on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from isthmus.core.errors import DataError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.parts import PARTS as PARTS  # noqa: PLC0414  (importable from here, too)
from isthmus.data.parts import Part as Part  # noqa: PLC0414
from isthmus.data.parts import part_of_text as part_of_text  # noqa: PLC0414
from isthmus.maps.moments import PairMoments
from isthmus.maps.rows import PairedRows as PairedRows  # noqa: PLC0414  (importable from here, too)
from isthmus.models.batching import check_texts
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import Pairing
from isthmus.workflows.row_reading import RowPicker, picked_rows, row_pickers, rows_together

TextPairs = (
    tuple[Sequence[EncodedText], Sequence[EncodedText]] | Iterator[tuple[EncodedText, EncodedText]]
)
"""The same texts as the source and as the target see them: two lists, or a stream of both."""

_TEXTS_AT_ONCE = 128
_ROWS_TO_SUM = 4096  # rows that are added to moments together

MOST_KEPT = 2**26
"""Most activations, in numbers, that are kept from the first reading; 256 MiB in float32."""


@dataclass(frozen=True)
class PairedMoments:
    """Moments of paired activations per target site and part.

    Attributes:
        source_sites: Sites that the source side concatenates.
        by_site: Moments by target site and part.
        n_pairs: Paired tokens, or spans, in all.
        n_texts: Texts that were read.
        rows: The pairs themselves, target sites side by side, when they are few enough to keep.
        joint: Moments by part with all target sites side by side.
    """

    source_sites: tuple[Site, ...]
    by_site: dict[Site, dict[Part, PairMoments]]
    n_pairs: int
    n_texts: int
    rows: dict[Part, PairedRows]
    joint: dict[Part, PairMoments]

    def rows_at(self, site: Site) -> dict[Part, PairedRows] | None:
        """Returns the pairs of one target site, or None when they were not kept."""
        width = next(iter(self.by_site[site].values())).d_target
        start = list(self.by_site).index(site) * width
        kept = {
            part: PairedRows(rows.source, rows.target[:, start : start + width], rows.n_per_text)
            for part, rows in self.rows.items()
        }
        return kept or None


class _PairedText(NamedTuple):
    """One text as both models see it, and what takes the rows that belong together."""

    texts: tuple[EncodedText, EncodedText]
    pickers: tuple[RowPicker, RowPicker]

    def of(self, side: int) -> tuple[EncodedText, RowPicker]:
        return self.texts[side], self.pickers[side]


class PairsRead(NamedTuple):
    """How much was read.

    Attributes:
        n_pairs: Pairs of rows.
        n_texts: Texts.
    """

    n_pairs: int
    n_texts: int


def read_pairs(
    source: LanguageModel,
    target: LanguageModel,
    texts: TextPairs,
    sites: tuple[Sequence[Site], Sequence[Site]],
    visit: Callable[[Part, Tensor, Tensor], None],
    *,
    pairing: Pairing = "character_end",
    batch_size: int = 64,
    n_texts: int | None = None,
    progress: Progress,
) -> PairsRead:
    """Runs both models over the same texts and hands over paired activations, text by text.

    Texts are read together while their rows are few: what is in memory does not grow with the texts
    or their lengths, unless one text alone has more rows than `rows_together`.

    Args:
        source: Source model.
        target: Target model.
        texts: The texts as the source and as the target see them, in the same order.
        sites: Source sites and target sites, either side by side in this order.
        visit: Called per text, in their order, with its part, its source rows and its target rows.
        pairing: How tokens are paired.
        batch_size: Texts per forward pass.
        n_texts: How many texts a stream has, where that is known, for the progress.
        progress: Who shows progress.

    Returns:
        How many pairs of rows and texts there were.

    Raises:
        DataError: If a text is empty or too long, or no token of any text could be paired.
    """
    models, count = (source, target), PairsRead(0, 0)
    if isinstance(texts, tuple):
        n_texts, texts = len(texts[0]), zip(*texts, strict=True)
    read_by = f"read {source.identity.name} and {target.identity.name}"
    with progress.stage(read_by, n_texts) as advance:
        most = rows_together(
            sum(len(own) * lm.d_model for lm, own in zip(models, sites, strict=True))
        )
        for window in _windows(_paired_texts(models, texts, pairing, batch_size), most):
            rows, made = (
                _side_by_side(lm, [one.of(side) for one in window], sites[side], batch_size)
                for side, lm in enumerate(models)
            )
            for i, (ours, theirs) in enumerate(zip(rows, made, strict=True), start=count.n_texts):
                visit(part_of_text(i), ours, theirs)
            count = PairsRead(count.n_pairs + sum(map(len, rows)), count.n_texts + len(window))
            advance(len(window))
    if not count.n_pairs:
        raise DataError("no token of the two models could be paired: check the texts and templates")
    return count


def _paired_texts(
    models: tuple[LanguageModel, LanguageModel],
    texts: Iterable[tuple[EncodedText, EncodedText]],
    pairing: Pairing,
    batch_size: int,
) -> Iterator[_PairedText]:
    for index, both in enumerate(texts):
        for lm, text in zip(models, both, strict=True):
            check_texts(lm, [text], batch_size, first=index)
        yield _PairedText(both, row_pickers(*both, pairing))


def _windows(texts: Iterable[_PairedText], most_rows: int) -> Iterator[list[_PairedText]]:
    """Cuts texts into pieces that are read together; one text alone may have more rows."""
    window: list[_PairedText] = []
    n_rows = 0
    for one in texts:
        n_more = len(one.pickers[0].tokens)
        if window and (len(window) == _TEXTS_AT_ONCE or n_rows + n_more > most_rows):
            yield window
            window, n_rows = [], 0
        window.append(one)
        n_rows += n_more
    if window:
        yield window


def _side_by_side(
    lm: LanguageModel,
    texts: Sequence[tuple[EncodedText, RowPicker]],
    sites: Sequence[Site],
    batch_size: int,
) -> list[Tensor]:
    """Returns the rows of every text, all sites side by side."""
    width = lm.d_model
    found = [torch.empty(len(picker.tokens), len(sites) * width) for _, picker in texts]
    for index, number, rows in picked_rows(lm, texts, sites, batch_size=batch_size):
        found[index][:, number * width : (number + 1) * width] = rows
    return found


def paired_moments(
    source: LanguageModel,
    target: LanguageModel,
    texts: TextPairs,
    sites: tuple[Sequence[Site], Sequence[Site]],
    *,
    pairing: Pairing = "character_end",
    batch_size: int = 64,
    n_texts: int | None = None,
    progress: Progress,
    keeps_rows: bool = True,
) -> PairedMoments:
    """Accumulates the moments of paired activations for every target site.

    Rows are kept, too, while all of them together are at most `MOST_KEPT` numbers, unless
    `keeps_rows` is false. Other arguments are those of `read_pairs`.
    """
    d_source, d_target = len(sites[0]) * source.d_model, len(sites[1]) * target.d_model
    # One pass over the source side serves all target sites.
    moments = {part: PairMoments(d_source, d_target) for part in PARTS}
    waiting: dict[Part, list[tuple[Tensor, Tensor]]] = {part: [] for part in PARTS}
    kept: dict[Part, list[PairedRows]] = {part: [] for part in PARTS}
    n_numbers = 0

    def flush(part: Part) -> None:
        nonlocal n_numbers
        if waiting[part]:
            pair = _joined(waiting[part])
            moments[part].update(pair.source, pair.target)
            waiting[part].clear()
            n_numbers += pair.source.numel() + pair.target.numel()
            if keeps_rows and n_numbers <= MOST_KEPT:
                kept[part].append(pair)
            else:
                kept[part].clear()

    most_waiting = min(_ROWS_TO_SUM, rows_together(d_source + d_target))

    def visit(part: Part, rows: Tensor, made: Tensor) -> None:
        waiting[part].append((rows, made))
        if sum(len(x) for x, _ in waiting[part]) >= most_waiting:
            flush(part)

    asked = (source, target, texts, sites, visit)
    read = read_pairs(
        *asked, pairing=pairing, batch_size=batch_size, n_texts=n_texts, progress=progress
    )
    for part in PARTS:
        flush(part)
    by_site = {
        site: {
            part: moments[part].at_target(i * target.d_model, (i + 1) * target.d_model)
            for part in PARTS
        }
        for i, site in enumerate(sites[1])
    }
    is_kept = keeps_rows and n_numbers <= MOST_KEPT
    rows = {part: _all(pieces) for part, pieces in kept.items() if pieces and is_kept}
    return PairedMoments(tuple(sites[0]), by_site, *read, rows, moments)


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> PairedRows:
    """Returns the rows of texts that were read one by one."""
    sides = pairs[0] if len(pairs) == 1 else [torch.cat(side) for side in zip(*pairs, strict=True)]
    return PairedRows(sides[0], sides[1], tuple(len(x) for x, _ in pairs))


def _all(pieces: Sequence[PairedRows]) -> PairedRows:
    return PairedRows(
        torch.cat([one.source for one in pieces]),
        torch.cat([one.target for one in pieces]),
        tuple(n for one in pieces for n in one.n_per_text),
    )


def paired_rows(
    source: LanguageModel,
    target: LanguageModel,
    texts: TextPairs,
    sites: tuple[Sequence[Site], Site | Sequence[Site]],
    *,
    pairing: Pairing = "character_end",
    batch_size: int = 64,
    n_texts: int | None = None,
    progress: Progress,
) -> dict[Part, PairedRows]:
    """Keeps the paired activations of one target site, or of several side by side, part by part.

    Arguments are those of `read_pairs`, with one target site or several.
    """
    wanted = (sites[1],) if isinstance(sites[1], Site) else tuple(sites[1])
    kept: dict[Part, list[tuple[Tensor, Tensor]]] = {part: [] for part in PARTS}

    def visit(part: Part, rows: Tensor, made: Tensor) -> None:
        kept[part].append((rows, made))

    read_pairs(
        source,
        target,
        texts,
        (sites[0], wanted),
        visit,
        pairing=pairing,
        batch_size=batch_size,
        n_texts=n_texts,
        progress=progress,
    )
    return {part: _joined(pairs) for part, pairs in kept.items() if pairs}
