"""Greedy completions, with or without edits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, ModelError
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.models.batching import (
    OnBatch,
    PlaceEdits,
    check_open,
    check_texts,
    ignore,
    no_edits,
    padded_batches,
)
from isthmus.models.hooks import editing
from isthmus.models.language_model import LanguageModel


@dataclass(frozen=True)
class GenerationResult:
    """What a model wrote.

    Attributes:
        completions: The new text of every prompt, in their order, without special tokens and
            without white space around it.
        n_edited: How many (position, site) pairs were edited, padding and what follows an end token
            not counted.
        n_edited_by_text: The same for every prompt, in their order.
    """

    completions: tuple[str, ...]
    n_edited: int
    n_edited_by_text: tuple[int, ...]


def generate_greedy(
    lm: LanguageModel,
    prompts: Sequence[EncodedText],
    *,
    max_new_tokens: int,
    edits: PlaceEdits = no_edits,
    batch_size: int = 64,
    on_batch: OnBatch = ignore,
) -> GenerationResult:
    """Continues every prompt with the most likely next token until the model ends its answer.

    Sampling settings and penalties that come with a model are ignored.

    Args:
        lm: The model.
        prompts: What it continues: all tokens of each text.
        max_new_tokens: Most tokens per completion, at least 1.
        edits: Says what to edit in a batch, which is padded on the left.
        batch_size: Prompts per batch, at least 1.
        on_batch: Told after each batch how many prompts it held.

    Returns:
        Completions in the order of the prompts, and how much was edited.

    Raises:
        ConfigError: If `max_new_tokens` or `batch_size` is below 1.
        DataError: If there is no prompt, or one is empty, too long or already ended.
        ModelError: If the model cannot generate.
        SiteError: If an edit is at a site that the model does not have.
        ShapeError: If an edit does not fit the model or its masks not the batch.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    check_texts(lm, prompts, batch_size, n_new=max_new_tokens)
    check_open(lm, prompts)
    completions = [""] * len(prompts)
    n_edited = [0] * len(prompts)
    for indices, batch in padded_batches(lm, prompts, "left", batch_size):
        placed = edits(batch)
        with editing(lm.layout, placed) as count:
            new_ids = _generate(lm, batch, max_new_tokens)
        lengths = _completion_lengths(new_ids, lm.eos_ids)
        n_counted = count.by_row(len(indices))
        n_idle = _n_after_end(placed, lengths, new_ids.shape[1])
        for row, index in enumerate(indices):
            completions[index] = completion_text(lm, new_ids[row, : lengths[row]].tolist())
            n_edited[index] = n_counted[row] - n_idle[row]
        on_batch(len(indices))
    return GenerationResult(tuple(completions), sum(n_edited), tuple(n_edited))


def completion_text(lm: LanguageModel, new_ids: Sequence[int]) -> str:
    """Returns what new tokens say, without special tokens and without white space around it."""
    text = lm.tokenizer.decode(
        list(new_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text).strip()


@torch.inference_mode()
def _generate(
    lm: LanguageModel, batch: TokenBatch, max_new_tokens: int
) -> Int[Tensor, "batch new"]:
    # Values that are left out would be filled from the model's own generation settings.
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        typical_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=lm.pad_id,
        eos_token_id=list(lm.eos_ids) or None,
    )
    token_ids = batch.token_ids.to(lm.device)
    mask = batch.is_real.long().to(lm.device)
    if not isinstance(lm.model, GenerationMixin):
        raise ModelError(f"{type(lm.model).__name__} cannot generate: load a causal language model")
    # transformers types `self` of `generate` as a protocol that mypy cannot bind.
    model: Any = lm.model
    ids: Tensor = model.generate(
        input_ids=token_ids, attention_mask=mask, generation_config=settings
    )
    return ids[:, token_ids.shape[1] :].cpu()


def _completion_lengths(new_ids: Int[Tensor, "batch new"], eos_ids: Sequence[int]) -> list[int]:
    """Counts the tokens of every row up to its first end token, which counts too."""
    is_end = torch.isin(new_ids, torch.tensor(eos_ids, dtype=new_ids.dtype))
    first = is_end.long().argmax(1) + 1
    return torch.where(is_end.any(1), first, new_ids.shape[1]).tolist()


def _n_after_end(placed: Sequence[PlacedEdit], lengths: Sequence[int], n_new: int) -> Sequence[int]:
    """Counts, row by row, edits at what is fed for rows that ended while others went on."""
    sites = {one.site for one in placed}
    n_sites = [0] * len(lengths)
    for site in sites:
        masks = [one.generated.cpu() for one in placed if one.site == site]
        is_edited = torch.stack(masks).any(0).tolist()
        n_sites = [n + int(here) for n, here in zip(n_sites, is_edited, strict=True)]
    # The last new token is never fed back.
    return [max(0, n_new - length) * n for length, n in zip(lengths, n_sites, strict=True)]
