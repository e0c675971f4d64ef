"""Reads both models over the same texts and keeps what maps are fitted on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.core.errors import DataError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.alignment import SpanTokens, pair_spans, pair_tokens
from isthmus.data.parts import PARTS as PARTS  # noqa: PLC0414  (importable from here, too)
from isthmus.data.parts import Part as Part  # noqa: PLC0414
from isthmus.data.parts import part_of_text as part_of_text  # noqa: PLC0414
from isthmus.maps.moments import PairMoments
from isthmus.maps.rows import PairedRows as PairedRows  # noqa: PLC0414  (importable from here, too)
from isthmus.models.capture import all_token_activations
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import Pairing

_TEXTS_AT_ONCE = 128

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
    """

    source_sites: tuple[Site, ...]
    by_site: dict[Site, dict[Part, PairMoments]]
    n_pairs: int
    n_texts: int
    rows: dict[Part, PairedRows]

    def rows_at(self, site: Site) -> dict[Part, PairedRows] | None:
        """Returns the pairs of one target site, or None when they were not kept."""
        width = next(iter(self.by_site[site].values())).d_target
        start = list(self.by_site).index(site) * width
        kept = {
            part: PairedRows(rows.source, rows.target[:, start : start + width], rows.n_per_text)
            for part, rows in self.rows.items()
        }
        return kept or None


def read_pairs(
    source: LanguageModel,
    target: LanguageModel,
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    sites: tuple[Sequence[Site], Sequence[Site]],
    visit: Callable[[Part, Tensor, dict[Site, Tensor]], None],
    *,
    pairing: Pairing = "character_end",
    batch_size: int = 64,
    progress: Progress,
) -> int:
    """Runs both models over the same texts and hands over paired activations, chunk by chunk.

    Args:
        source: Source model.
        target: Target model.
        texts: The texts as the source and as the target see them, in the same order.
        sites: Source sites, concatenated in this order, and target sites.
        visit: Called per text with its part, the source rows and the target rows by site.
        pairing: How tokens are paired.
        batch_size: Texts per forward pass.
        progress: Who shows progress.

    Returns:
        How many pairs of rows there were.

    Raises:
        DataError: If no token of any text could be paired.
    """
    n_pairs = 0
    with progress.stage(
        f"read {source.identity.name} and {target.identity.name}", len(texts[0])
    ) as advance:
        for start in range(0, len(texts[0]), _TEXTS_AT_ONCE):
            here = [side[start : start + _TEXTS_AT_ONCE] for side in texts]
            read = all_token_activations(source, here[0], sites[0], batch_size=batch_size)
            made = all_token_activations(target, here[1], sites[1], batch_size=batch_size)
            for i, (text, other) in enumerate(zip(here[0], here[1], strict=True)):
                of_source, of_target = row_pickers(text, other, pairing)
                rows = torch.cat([of_source(read[site][i]) for site in sites[0]], dim=-1)
                n_pairs += len(rows)
                visit(
                    part_of_text(start + i),
                    rows,
                    {site: of_target(made[site][i]) for site in sites[1]},
                )
            advance(len(here[0]))
    if not n_pairs:
        raise DataError("no token of the two models could be paired: check the texts and templates")
    return n_pairs


@dataclass(frozen=True)
class RowPicker:
    """Takes the rows that belong to another model's from the states of one text.

    Attributes:
        tokens: For every row its token; of a span its last one.
        spans: The tokens of every row, where rows are means over spans.
    """

    tokens: Int[Tensor, " row"]
    spans: SpanTokens | None = None

    def __call__(self, states: Float[Tensor, "token d_model"]) -> Float[Tensor, "row d_model"]:
        """Returns the rows, given a state per token."""
        return states[self.tokens] if self.spans is None else self.spans.mean(states)


def row_pickers(
    source: EncodedText, target: EncodedText, pairing: Pairing
) -> tuple[RowPicker, RowPicker]:
    """Returns what takes the rows that belong together from the states of one text.

    Args:
        source: The text as the source sees it.
        target: The text as the target sees it.
        pairing: How tokens are paired.

    Returns:
        One for the source's states and one for the target's; both return equally many rows: states
        of single tokens, or with `span_pool` means over spans.

    Raises:
        DataError: If the two renderings share too little.
    """
    if pairing == "span_pool":
        spans = pair_spans(source, target)
        return _of_spans(spans.source), _of_spans(spans.target)
    of_source, of_target = pair_tokens(source, target, pairing)
    return RowPicker(torch.from_numpy(of_source)), RowPicker(torch.from_numpy(of_target))


def _of_spans(spans: SpanTokens) -> RowPicker:
    last = torch.zeros(int(spans.spans[-1]) + 1 if len(spans.spans) else 0, dtype=torch.int64)
    for span, token in zip(spans.spans.tolist(), spans.tokens.tolist(), strict=True):
        last[span] = token
    return RowPicker(last, spans)


def paired_moments(
    source: LanguageModel,
    target: LanguageModel,
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    sites: tuple[Sequence[Site], Sequence[Site]],
    *,
    pairing: Pairing = "character_end",
    batch_size: int = 64,
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

    def visit(part: Part, rows: Tensor, made: dict[Site, Tensor]) -> None:
        waiting[part].append((rows, torch.cat([made[site] for site in sites[1]], dim=-1)))
        if sum(len(x) for x, _ in waiting[part]) >= 4096:
            flush(part)

    n_pairs = read_pairs(
        source,
        target,
        texts,
        sites,
        visit,
        pairing=pairing,
        batch_size=batch_size,
        progress=progress,
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
    return PairedMoments(tuple(sites[0]), by_site, n_pairs, len(texts[0]), rows)


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> PairedRows:
    """Returns the rows of texts that were read one by one."""
    sides = [torch.cat([pair[side] for pair in pairs]) for side in (0, 1)]
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
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    sites: tuple[Sequence[Site], Site],
    *,
    pairing: Pairing = "character_end",
    batch_size: int = 64,
    progress: Progress,
) -> dict[Part, PairedRows]:
    """Keeps the paired activations of one target site, part by part.

    Arguments are those of `read_pairs`, with one target site.
    """
    kept: dict[Part, list[tuple[Tensor, Tensor]]] = {part: [] for part in PARTS}

    def visit(part: Part, rows: Tensor, made: dict[Site, Tensor]) -> None:
        kept[part].append((rows.float(), made[sites[1]].float()))

    read_pairs(
        source,
        target,
        texts,
        (sites[0], [sites[1]]),
        visit,
        pairing=pairing,
        batch_size=batch_size,
        progress=progress,
    )
    return {part: _joined(pairs) for part, pairs in kept.items() if pairs}
