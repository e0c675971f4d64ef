"""Reads activations: streamed in batches, at chosen tokens, or at all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import DataError, NonFiniteError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.models.batching import OnBatch, check_texts, ignore, padded_batches
from isthmus.models.hooks import run_until_captured
from isthmus.models.language_model import LanguageModel

# A pass costs as much as so many tokens before it has read one. A processor reads every weight
# once, 13 to 60 tokens' worth for widths of 64 to 2,048; an accelerator is faster per token, and no
# faster at starting a pass.
_PASS_COST_CPU, _PASS_COST_ELSEWHERE = 32, 2048


@dataclass(frozen=True)
class CapturedBatch:
    """Activations of some texts, without padding.

    Attributes:
        indices: Which of the given texts these are.
        row_lengths: How many tokens each of them has.
        values: For every site one row per token, text after text, on the device of the site's block
            and in the model's dtype.
    """

    indices: tuple[int, ...]
    row_lengths: tuple[int, ...]
    values: Mapping[Site, Float[Tensor, "token d_model"]]

    def rows(self, site: Site) -> tuple[Float[Tensor, "_ d_model"], ...]:
        """Returns the activations of each text at one site, as views.

        Args:
            site: One of the captured sites.

        Returns:
            One tensor per text.
        """
        rows: tuple[Tensor, ...] = self.values[site].split(self.row_lengths)
        return rows


def capture_activations(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    sites: Sequence[Site],
    *,
    batch_size: int = 64,
    on_batch: OnBatch = ignore,
) -> Iterator[CapturedBatch]:
    """Yields the activations of texts in batches of like length, longest first.

    Batches are cut where padding would cost more than a batch of its own. Nothing after
    the last of the sites is computed; the language-model head never runs.

    Args:
        lm: The model.
        texts: What it reads.
        sites: Where to read.
        batch_size: Most texts per batch, at least 1.
        on_batch: Told after each batch how many texts it held.

    Returns:
        An iterator; every text occurs in it once.

    Raises:
        SiteError: If no site is given or the model does not have one of them.
        DataError: If there is no text, or one is empty or too long.
        NonFiniteError: While iterating, if an activation is NaN or infinite.
    """
    check_texts(lm, texts, batch_size)
    return _captured_batches(lm, texts, lm.sites(sites), batch_size, on_batch)


def _captured_batches(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    sites: Sequence[Site],
    batch_size: int,
    on_batch: OnBatch,
) -> Iterator[CapturedBatch]:
    cost = _PASS_COST_CPU if lm.device.type == "cpu" else _PASS_COST_ELSEWHERE
    for indices, batch in padded_batches(lm, texts, "right", batch_size, pass_cost=cost):
        # Found on the host: an accelerator would have to be waited for, site by site.
        real = batch.is_real.flatten().nonzero().squeeze(1)
        # Selected outside inference mode: fits with gradients can use what comes out.
        values = {
            site: value.flatten(0, 1).index_select(0, real.to(value.device))
            for site, value in _forward(lm, batch, sites).items()
        }
        captured = CapturedBatch(indices, tuple(len(text) for text in batch.texts), values)
        _check_finite(captured)
        yield captured
        on_batch(len(indices))


@torch.inference_mode()
def _forward(lm: LanguageModel, batch: TokenBatch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    token_ids, is_real = batch.token_ids.to(lm.device), batch.is_real.to(lm.device)
    return run_until_captured(lm.layout, sites, token_ids, is_real)


def _check_finite(captured: CapturedBatch) -> None:
    # Sums keep every NaN and infinity at a tenth of the price, and are waited for once; since one
    # may overflow by itself, the values are then looked at one by one.
    sums = torch.stack([values.sum(dtype=torch.float32) for values in captured.values.values()])
    if bool(torch.isfinite(sums).all()):
        return
    for site, values in captured.values.items():
        if bool(torch.isfinite(values).all()):
            continue
        rows = zip(captured.indices, captured.rows(site), strict=True)
        index = next(i for i, row in rows if not bool(torch.isfinite(row).all()))
        raise NonFiniteError(
            f"activations of text {index} at {site} hold NaN or infinity: load the model with "
            "dtype float32 or bfloat16"
        )


def activations_at(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    sites: Sequence[Site],
    token_indices: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    on_batch: OnBatch = ignore,
) -> dict[Site, Float[Tensor, "row position d_model"]]:
    """Reads the activations at chosen tokens of every text.

    Args:
        lm: The model.
        texts: What it reads.
        sites: Where to read.
        token_indices: For every text equally many token indices, from 0.
        batch_size: Texts per batch, at least 1.
        on_batch: Told after each batch how many texts it held.

    Returns:
        One tensor per site, float32 on the CPU, in the order of the texts.

    Raises:
        SiteError: If no site is given or the model does not have one of them.
        DataError: If the indices do not fit the texts or are not equally many, or if there is no
            text, or one is empty or too long.
        NonFiniteError: If an activation is NaN or infinite.
    """
    _check_indices(texts, token_indices)
    found: dict[Site, dict[int, Tensor]] = {site: {} for site in sites}
    for batch in capture_activations(lm, texts, sites, batch_size=batch_size, on_batch=on_batch):
        for site, by_text in found.items():
            for index, row in zip(batch.indices, batch.rows(site), strict=True):
                by_text[index] = row[list(token_indices[index])].float().cpu()
    return {
        site: torch.stack([by_text[i] for i in range(len(texts))])
        for site, by_text in found.items()
    }


def _check_indices(texts: Sequence[EncodedText], token_indices: Sequence[Sequence[int]]) -> None:
    if len(token_indices) != len(texts):
        raise DataError(f"{len(token_indices)} lists of token indices for {len(texts)} texts")
    for i, (text, indices) in enumerate(zip(texts, token_indices, strict=True)):
        if len(indices) != len(token_indices[0]) or not indices:
            raise DataError(
                f"text {i} has {len(indices)} token indices, text 0 has {len(token_indices[0])}: "
                "give every text equally many, at least one"
            )
        if not all(0 <= index < len(text) for index in indices):
            raise DataError(
                f"token indices {list(indices)} of text {i}: it has tokens 0 to {len(text) - 1}"
            )


def all_token_activations(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    sites: Sequence[Site],
    *,
    batch_size: int = 64,
    on_batch: OnBatch = ignore,
) -> dict[Site, list[Float[Tensor, "_ d_model"]]]:
    """Reads the activations at every token of every text.

    Args:
        lm: The model.
        texts: What it reads.
        sites: Where to read.
        batch_size: Texts per batch, at least 1.
        on_batch: Told after each batch how many texts it held.

    Returns:
        For every site one tensor per text, float32 on the CPU, in the order of the texts.

    Raises:
        SiteError: If no site is given or the model does not have one of them.
        DataError: If there is no text, or one is empty or too long.
        NonFiniteError: If an activation is NaN or infinite.
    """
    found: dict[Site, dict[int, Tensor]] = {site: {} for site in sites}
    for batch in capture_activations(lm, texts, sites, batch_size=batch_size, on_batch=on_batch):
        for site, by_text in found.items():
            packed = batch.values[site].float().cpu().split(batch.row_lengths)
            by_text.update(zip(batch.indices, packed, strict=True))
    return {site: [by_text[i] for i in range(len(texts))] for site, by_text in found.items()}
