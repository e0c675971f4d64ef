"""Reads both models over the same texts and keeps what maps are fitted on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import DataError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.alignment import pair_tokens
from isthmus.maps.moments import PairMoments
from isthmus.models.capture import all_token_activations
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import Pairing

Part = Literal["train", "selection", "held_out"]
PARTS: tuple[Part, ...] = ("train", "selection", "held_out")

_TEXTS_AT_ONCE = 128


def part_of_text(index: int) -> Part:
    """Returns which part a text belongs to: of ten, seven train, one selects, two are held out."""
    return "selection" if index % 10 == 3 else "held_out" if index % 10 in {6, 9} else "train"


@dataclass(frozen=True)
class PairedMoments:
    """Moments of paired activations per target site and part.

    Attributes:
        source_sites: Sites that the source side concatenates.
        by_site: Moments by target site and part.
        n_pairs: Paired tokens in all.
        n_texts: Texts that were read.
    """

    source_sites: tuple[Site, ...]
    by_site: dict[Site, dict[Part, PairMoments]]
    n_pairs: int
    n_texts: int


@dataclass(frozen=True)
class PairedRows:
    """Paired activations themselves, for fits that need rows.

    Attributes:
        source: Source activations, the sites concatenated.
        target: Target activations of one site.
    """

    source: Float[Tensor, "row d_source"]
    target: Float[Tensor, "row d_target"]


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
        How many token pairs there were.

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
                in_source, in_target = pair_tokens(text, other, pairing)
                n_pairs += len(in_source)
                rows = torch.cat([read[site][i][in_source] for site in sites[0]], dim=-1)
                visit(
                    part_of_text(start + i),
                    rows,
                    {site: made[site][i][in_target] for site in sites[1]},
                )
            advance(len(here[0]))
    if not n_pairs:
        raise DataError("no token of the two models could be paired: check the texts and templates")
    return n_pairs


def paired_moments(
    source: LanguageModel,
    target: LanguageModel,
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    sites: tuple[Sequence[Site], Sequence[Site]],
    *,
    pairing: Pairing = "character_end",
    batch_size: int = 64,
    progress: Progress,
) -> PairedMoments:
    """Accumulates the moments of paired activations for every target site, storing no row.

    Arguments are those of `read_pairs`.
    """
    d_source = len(sites[0]) * source.d_model
    by_site = {
        site: {part: PairMoments(d_source, target.d_model) for part in PARTS} for site in sites[1]
    }
    waiting: dict[Part, list[tuple[Tensor, dict[Site, Tensor]]]] = {part: [] for part in PARTS}

    def flush(part: Part) -> None:
        if waiting[part]:
            rows = torch.cat([x for x, _ in waiting[part]])
            for site in sites[1]:
                by_site[site][part].update(rows, torch.cat([y[site] for _, y in waiting[part]]))
            waiting[part].clear()

    def visit(part: Part, rows: Tensor, made: dict[Site, Tensor]) -> None:
        waiting[part].append((rows, made))
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
    return PairedMoments(tuple(sites[0]), by_site, n_pairs, len(texts[0]))


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
    return {
        part: PairedRows(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
        for part, pairs in kept.items()
        if pairs
    }
