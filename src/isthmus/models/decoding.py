"""Greedy tokens of one batch, which rows leave when they have ended.

The longest answer of a batch decides how many steps it takes. Rows that have ended are dropped from
keys, values and what is run, so that a step costs what its open rows cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicCache
from typing_extensions import override

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ModelError, NonFiniteError
from isthmus.core.texts import TokenBatch
from isthmus.models.hooks import editing
from isthmus.models.language_model import LanguageModel
from isthmus.models.live_rows import LiveRows
from isthmus.models.row_cache import (
    Held,
    RowCache,
    growing_cache_fault,
    returns_cache,
    shortest_window,
)

_WORTH_DROPPING = 8
"""Rows are dropped when one in so many has ended: dropping copies all keys and values once."""


NO_TOKEN = -1
"""Stands for the next token where the largest logit is NaN or infinite: none is the likeliest."""


@dataclass(frozen=True)
class Decoded:
    """What a model wrote behind the texts of a batch.

    Attributes:
        new_ids: The new tokens of every row, up to its first end token, which is among them.
        n_edited: How many (position, site) pairs of every row were edited, padding and what
            follows an end token not counted.
    """

    new_ids: tuple[tuple[int, ...], ...]
    n_edited: tuple[int, ...]


@torch.inference_mode()
def decode_greedy(
    lm: LanguageModel,
    batch: TokenBatch,
    placed: Sequence[PlacedEdit],
    max_new_tokens: int,
    held: Held = (),
) -> Decoded:
    """Continues every row of a batch with the most likely next token until it ends.

    Args:
        lm: The model.
        batch: Texts padded on the left.
        placed: What to edit.
        max_new_tokens: Most tokens per row, at least 1.
        held: Keys and values of the first columns, which are then not read again.

    Returns:
        New tokens and edited positions, row by row. Models whose memory is more than keys and
        values, or that prepare their inputs in a way of their own, keep all rows to the end; so do
        texts longer than a sliding window, which saves more memory than rows that leave.

    Raises:
        ModelError: If the model cannot generate.
        SiteError: If an edit is at a site that the model does not have.
        ShapeError: If an edit does not fit the model or its masks not the batch.
        NonFiniteError: If logits are NaN or infinite where a row goes on.
    """
    if not isinstance(lm.model, GenerationMixin):
        raise ModelError(f"{type(lm.model).__name__} cannot generate: load a causal language model")
    live = LiveRows(len(batch.texts), lm.device)
    rows_leave = bool(held) or (can_drop_rows(lm) and _is_within_windows(lm, batch, max_new_tokens))
    # Asked before the edits are there: it may have to run the model.
    has_cache = rows_leave or returns_cache(lm)
    with editing(lm.layout, placed, live) as count:
        if rows_leave:
            rows, ids = read_prompts(lm, batch, held)
            new_ids = _continued(lm, rows, ids, max_new_tokens, live)
        else:
            new_ids = written_by_generate(
                lm, batch, lm.eos_ids, max_new_tokens=max_new_tokens, use_cache=has_cache
            )
    ended = [_up_to_end(ids, lm.eos_ids) for ids in new_ids]
    for index, own in zip(batch.indices, ended, strict=True):
        if NO_TOKEN in own:
            raise no_token_error(f"prompt {index}", own.index(NO_TOKEN))
    # The last new token of a row is never fed back.
    n_idle = [len(ids) - len(own) for ids, own in zip(new_ids, ended, strict=True)]
    n_sites = _edited_sites(placed, len(new_ids))
    counted = zip(count.by_row(len(new_ids)), n_idle, n_sites, strict=True)
    return Decoded(tuple(ended), tuple(n - idle * sites for n, idle, sites in counted))


def next_token_ids(
    lm: LanguageModel,
    rows: RowCache,
    ids: Int[Tensor, "batch new"],
    positions: Int[Tensor, "batch new"],
    mask: Int[Tensor, "batch column"] | None = None,
) -> Int[Tensor, " batch"]:
    """Runs a model on the next tokens of rows and returns the likeliest one behind each row.

    Args:
        lm: The model.
        rows: What it holds of the rows; it appends to it.
        ids: The tokens.
        positions: The position of each in its own text.
        mask: 1 for tokens and 0 for padding, with these; what `rows` says when not given.

    Returns:
        One token per row, `NO_TOKEN` where the logits name none.
    """
    accepted = _accepted(type(lm.model).forward)
    given: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": rows.mask(ids.shape[1]) if mask is None else mask,
        "past_key_values": rows.cache,
        "use_cache": True,
    }
    if "position_ids" in accepted:
        given["position_ids"] = positions
    if "logits_to_keep" in accepted:
        given["logits_to_keep"] = 1
    logits: Tensor = lm.model(**given).logits
    # On the accelerator, where nobody has to wait for it; NaN counts as the largest.
    largest, ids = logits[:, -1].max(-1)
    return ids.where(largest.isfinite(), NO_TOKEN)


def no_token_error(which: str, n_written: int) -> NonFiniteError:
    """Returns the error that a text cannot be continued.

    Args:
        which: Which text, for the message.
        n_written: How many new tokens it had got.

    Returns:
        The error, to be raised or kept.
    """
    return NonFiniteError(
        f"the logits of {which} are NaN or infinite after {n_written} new tokens: weaken the edit, "
        "or load the model with dtype float32"
    )


def read_prompts(
    lm: LanguageModel, batch: TokenBatch, held: Held = ()
) -> tuple[RowCache, Int[Tensor, " batch"]]:
    """Reads texts that are padded on the left.

    Args:
        lm: A model that keeps keys and values alone.
        batch: The texts.
        held: Keys and values of the first columns, which are then not read again.

    Returns:
        Keys and values of all rows, and the likeliest token behind each.
    """
    lengths = [len(text) for text in batch.texts]
    rows = RowCache(DynamicCache(), [0] * len(lengths), lm.device)
    for layer, (keys, values) in enumerate(held):
        rows.cache.update(keys, values, layer)
    new = slice(rows.cache.get_seq_length(), None)
    mask = batch.is_real.to(lm.device).long()
    # Positions of padding do not matter, but must exist.
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    token_ids = batch.token_ids.to(lm.device)
    ids = next_token_ids(lm, rows, token_ids[:, new], positions[:, new], mask)
    return RowCache(rows.cache, lengths, lm.device), ids


def can_drop_rows(lm: LanguageModel) -> bool:
    """Says whether a row of a generation is no more than its keys and values.

    Args:
        lm: The model.

    Returns:
        False where a layer keeps something else, or the model prepares its inputs in its own way.
    """
    own = getattr(type(lm.model), "prepare_inputs_for_generation", None)
    return own is GenerationMixin.prepare_inputs_for_generation and not growing_cache_fault(lm)


def _is_within_windows(lm: LanguageModel, batch: TokenBatch, max_new_tokens: int) -> bool:
    window = shortest_window(lm)
    return window is None or batch.token_ids.shape[1] + max_new_tokens <= window


@cache
def _accepted(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(forward).parameters)


def _continued(
    lm: LanguageModel,
    rows: RowCache,
    ids: Int[Tensor, " batch"],
    max_new_tokens: int,
    live: LiveRows,
) -> list[list[int]]:
    new_ids: list[list[int]] = [[] for _ in live.rows]
    has_ended, ends = [False] * len(new_ids), frozenset(lm.eos_ids)
    for n_written in range(1, max_new_tokens + 1):
        found = ids.tolist()
        for row, token_id in zip(live.rows, found, strict=True):
            new_ids[row].append(token_id)
            has_ended[row] |= token_id in ends
        is_open = [not has_ended[row] for row in live.rows]
        is_stuck = (NO_TOKEN, True) in zip(found, is_open, strict=True)
        if n_written == max_new_tokens or is_stuck or not any(is_open):
            break
        if _WORTH_DROPPING * is_open.count(False) >= len(is_open):
            kept = [place for place, is_kept in enumerate(is_open) if is_kept]
            live.keep(kept, n_cut=rows.keep(kept))
            ids = ids[kept]
        # What a row that has ended goes on with does not matter, but must exist.
        ids = next_token_ids(lm, rows, ids[:, None].clamp_min(0), rows.next_positions())
        rows.grow()
    return new_ids


def written_by_generate(
    lm: LanguageModel,
    batch: TokenBatch,
    ends: Sequence[int],
    *,
    max_new_tokens: int,
    use_cache: bool,
) -> list[list[int]]:
    """Continues rows by transformers' own loop, for models that keep more than keys and values.

    Args:
        lm: The model.
        batch: Texts padded on the left.
        ends: Tokens that end a row.
        max_new_tokens: Most tokens per row.
        use_cache: Whether a step reads one token. Where the memory is none of transformers' caches
            (`returns_cache`) nobody can tell which positions that is.

    Returns:
        New tokens of every row, `NO_TOKEN` where the logits named none.
    """
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=use_cache,
        pad_token_id=lm.pad_id,
        eos_token_id=list(ends) or None,
    )
    token_ids = batch.token_ids.to(lm.device)
    mask = batch.is_real.long().to(lm.device)
    # transformers types `self` of `generate` as a protocol that mypy cannot bind.
    model: Any = lm.model
    own = model.generation_config
    largest = _Largest()
    # What is left out here would be filled from the model's own settings and penalties.
    model.generation_config = GenerationConfig()
    try:
        ids: Tensor = model.generate(
            input_ids=token_ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList([largest]),
        )
    finally:
        model.generation_config = own
    new_ids = ids[:, token_ids.shape[1] :]
    return list(new_ids.where(torch.stack(largest.of_steps, 1).isfinite(), NO_TOKEN).tolist())


class _Largest(LogitsProcessor):
    """Keeps the largest logit of every row, step by step, and changes none."""

    def __init__(self) -> None:
        self.of_steps: list[Tensor] = []

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.of_steps.append(scores.max(-1).values)
        return scores


def _up_to_end(new_ids: Sequence[int], eos_ids: Sequence[int]) -> tuple[int, ...]:
    ends = (n for n, token_id in enumerate(new_ids, start=1) if token_id in eos_ids)
    return tuple(new_ids[: next(ends, len(new_ids))])


def _edited_sites(placed: Sequence[PlacedEdit], n_rows: int) -> list[int]:
    """Counts the sites at which every row is edited wherever it writes."""
    n_sites = torch.zeros(n_rows, dtype=torch.long)
    for site in {one.site for one in placed}:
        masks = [one.generated.cpu() for one in placed if one.site == site]
        n_sites += torch.stack(masks).any(0)
    return list(n_sites.tolist())
