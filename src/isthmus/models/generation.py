"""Greedy completions, with or without edits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from isthmus.core.errors import ConfigError
from isthmus.core.gates import GateReading
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
from isthmus.models.decoding import Decoded, decode_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.models.prompt_memory import PromptMemory


@dataclass(frozen=True)
class GenerationResult:
    """What a model wrote.

    Attributes:
        completions: The new text of every prompt, in their order, without special tokens and
            without white space around it.
        n_edited: How many (position, site) pairs were edited, padding and what follows an end token
            not counted.
        n_edited_by_text: The same for every prompt, in their order.
        gate: What a gate decided on the prompts; None without one.
    """

    completions: tuple[str, ...]
    n_edited: int
    n_edited_by_text: tuple[int, ...]
    gate: GateReading | None = None


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
        NonFiniteError: If logits are NaN or infinite where a completion goes on.
    """

    def decode(batch: TokenBatch) -> Decoded:
        return decode_greedy(lm, batch, edits(batch), max_new_tokens)

    _check(lm, prompts, max_new_tokens, batch_size)
    batches = padded_batches(lm, prompts, "left", batch_size, n_new=max_new_tokens)
    return _collected(lm, batches, len(prompts), decode, on_batch)


def generate_with_memory(
    memory: PromptMemory,
    prompts: Sequence[EncodedText],
    *,
    max_new_tokens: int,
    edits: PlaceEdits = no_edits,
    batch_size: int = 64,
) -> GenerationResult:
    """Does what `generate_greedy` does for prompts that many calls continue with other edits.

    Args:
        memory: What the model holds of prompts; it grows with prompts that are new to it.
        prompts: What the model continues: all tokens of each text.
        max_new_tokens: Most tokens per completion, at least 1.
        edits: Says what to edit in a batch, which is padded on the left.
        batch_size: Prompts per batch, at least 1.

    Returns:
        Completions in the order of the prompts, and how much was edited.

    Raises:
        ConfigError: If `max_new_tokens` or `batch_size` is below 1.
        DataError: If there is no prompt, or one is empty, too long or already ended.
        ModelError: If the model cannot generate.
        SiteError: If an edit is at a site that the model does not have.
        ShapeError: If an edit does not fit the model or its masks not the batch.
        NonFiniteError: If logits are NaN or infinite where a completion goes on.
    """
    lm = memory.lm

    def decode(batch: TokenBatch) -> Decoded:
        held, placed = memory.start(batch, edits(batch))
        return decode_greedy(lm, batch, placed, max_new_tokens, held)

    _check(lm, prompts, max_new_tokens, batch_size)
    batches = padded_batches(lm, prompts, "left", batch_size, n_new=max_new_tokens)
    return _collected(lm, batches, len(prompts), decode, ignore)


def completion_text(lm: LanguageModel, new_ids: Sequence[int]) -> str:
    """Returns what new tokens say, without special tokens and without white space around it."""
    text = lm.tokenizer.decode(
        list(new_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text).strip()


def _check(
    lm: LanguageModel, prompts: Sequence[EncodedText], max_new_tokens: int, batch_size: int
) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    check_texts(lm, prompts, batch_size, n_new=max_new_tokens)
    check_open(lm, prompts)


def _collected(
    lm: LanguageModel,
    batches: Iterable[tuple[tuple[int, ...], TokenBatch]],
    n_prompts: int,
    decode: Callable[[TokenBatch], Decoded],
    on_batch: OnBatch,
) -> GenerationResult:
    completions = [""] * n_prompts
    n_edited = [0] * n_prompts
    for indices, batch in batches:
        done = decode(batch)
        for index, new_ids, n in zip(indices, done.new_ids, done.n_edited, strict=True):
            completions[index] = completion_text(lm, new_ids)
            n_edited[index] = n
        on_batch(len(indices))
    return GenerationResult(tuple(completions), sum(n_edited), tuple(n_edited))
