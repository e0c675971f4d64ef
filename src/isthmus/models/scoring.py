"""Likelihood of given answers."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError, NonFiniteError
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.models.batching import (
    OnBatch,
    PlaceEdits,
    check_texts,
    ignore,
    no_edits,
    padded_batches,
)
from isthmus.models.hooks import editing
from isthmus.models.language_model import LanguageModel
from isthmus.models.resuming import PrefixStates, resuming

Start = tuple[PrefixStates, int]
"""Kept states that a pass starts from, and which of their batches is read."""


@dataclass(frozen=True)
class ScoringResult:
    """How likely answers are.

    Attributes:
        nll: Mean negative log-likelihood per answer token, end token included, in nats; float32.
        n_edited: How many (position, site) pairs were edited.
        n_edited_by_text: The same for every text, in their order.
    """

    nll: Float[Tensor, " text"]
    n_edited: int
    n_edited_by_text: tuple[int, ...]


def answer_nll(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    *,
    edits: PlaceEdits = no_edits,
    batch_size: int = 64,
    on_batch: OnBatch = ignore,
    prefix: PrefixStates | None = None,
) -> ScoringResult:
    """Scores the answers that texts carry: -Σ log p(token | what precedes it) / number of tokens.

    Args:
        lm: The model.
        texts: Prompts with answers.
        edits: Says what to edit in a batch, which is padded on the right.
        batch_size: Texts per batch, at least 1.
        on_batch: Told after each batch how many texts it held.
        prefix: States of these texts from which the passes start; nothing may be edited below.

    Returns:
        Losses in the order of the texts, and how much was edited.

    Raises:
        DataError: If there is no text, one is too long or has no prompt or no answer, or the prefix
            is of other texts.
        SiteError: If an edit is at a site that the model does not have.
        ShapeError: If an edit does not fit the model or its masks not the batch.
        NonFiniteError: If a likelihood is NaN or zero.
    """
    check_answers(lm, texts, batch_size)
    nll = torch.zeros(len(texts))
    n_edited = [0] * len(texts)
    for indices, batch, start in _batches(lm, texts, batch_size, prefix):
        logprobs, n_here = batch_logprobs(lm, batch, placed_in(batch, edits), start)
        nll[list(indices)] = mean_losses(logprobs.split(answer_lengths(batch.texts)), batch.texts)
        for index, n in zip(indices, n_here, strict=True):
            n_edited[index] = n
        on_batch(len(indices))
    check_finite(nll, "the answer's likelihood")
    return ScoringResult(nll, sum(n_edited), tuple(n_edited))


def answer_logprobs(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    *,
    edits: PlaceEdits = no_edits,
    batch_size: int = 64,
    prefix: PrefixStates | None = None,
) -> list[Float[Tensor, "_ vocab"]]:
    """Returns log p(every token) at each position where an answer token is predicted.

    Holds number of answer tokens × vocabulary values: meant for few texts.

    Args:
        lm: The model.
        texts: Prompts with answers.
        edits: Says what to edit in a batch, which is padded on the right.
        batch_size: Texts per batch, at least 1.
        prefix: States of these texts from which the passes start; nothing may be edited below.

    Returns:
        One float32 tensor per text, on the CPU, in the order of the texts.

    Raises:
        DataError: If there is no text, one is too long or has no prompt or no answer, or the prefix
            is of other texts.
        SiteError: If an edit is at a site that the model does not have.
        ShapeError: If an edit does not fit the model or its masks not the batch.
    """
    check_answers(lm, texts, batch_size)
    found: dict[int, Tensor] = {}
    for indices, batch, start in _batches(lm, texts, batch_size, prefix):
        logprobs, _ = batch_logprobs(lm, batch, placed_in(batch, edits), start)
        found.update(zip(indices, logprobs.cpu().split(answer_lengths(batch.texts)), strict=True))
    return [found[index] for index in range(len(texts))]


def mean_losses(
    logprobs: Sequence[Float[Tensor, "_ vocab"]], texts: Sequence[EncodedText]
) -> Float[Tensor, " text"]:
    """Returns the mean loss of every text's answer tokens.

    Args:
        logprobs: log p(every token) at each position where an answer token is predicted, per text.
        texts: Prompts with answers.

    Returns:
        Nats per answer token, float32, on the CPU.
    """
    found = []
    for rows, text in zip(logprobs, texts, strict=True):
        wanted = torch.tensor(text.token_ids[text.n_prompt :], device=rows.device)
        found.append(-rows.gather(1, wanted[:, None]).mean())
    return torch.stack(found).float().cpu()


def _batches(
    lm: LanguageModel, texts: Sequence[EncodedText], batch_size: int, prefix: PrefixStates | None
) -> Iterator[tuple[tuple[int, ...], TokenBatch, Start | None]]:
    """Yields padded batches, each with what its pass starts from, if anything."""
    if prefix is not None:
        prefix.check_fits(len(texts), batch_size)
    batches = padded_batches(lm, texts, "right", batch_size)
    for number, (indices, batch) in enumerate(batches):
        start = None if prefix is None else (prefix, number)
        yield indices, batch, start


@torch.inference_mode()
def placed_in(batch: TokenBatch, edits: PlaceEdits) -> Sequence[PlacedEdit]:
    """Places edits in a batch; what they compute for that needs no gradients."""
    return edits(batch)


@torch.inference_mode()
def batch_logprobs(
    lm: LanguageModel,
    batch: TokenBatch,
    placed: Sequence[PlacedEdit],
    start: Start | None = None,
) -> tuple[Float[Tensor, "token vocab"], list[int]]:
    """Runs one padded batch and returns log p(every token) where answer tokens are predicted.

    Args:
        lm: The model.
        batch: Prompts with answers.
        placed: What is edited; nothing below the block that the pass starts above.
        start: Kept states that the pass starts from, and which of their batches this is.

    Returns:
        Log-probabilities in float32 on the model's device, text after text, and how many
        positions were edited in every row.
    """
    rows, kept, columns = answer_places(batch.texts)
    with ExitStack() as stack:
        if start is not None:
            stack.enter_context(resuming(lm.layout, *start))
        count = stack.enter_context(editing(lm.layout, placed))
        logits = logits_at(lm, batch, columns)
    return logits[rows, kept].float().log_softmax(-1), count.by_row(len(batch.texts))


def answer_places(
    texts: Sequence[EncodedText], offsets: Sequence[int] | None = None
) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"], list[int]]:
    """Returns where the answer tokens of a batch are predicted.

    Args:
        texts: Prompts with answers.
        offsets: Column of the first token of every text; 0 when not given.

    Returns:
        For every answer token, text after text, its row and the place of its column among the
        columns that any text needs; and these columns, ascending.
    """
    starts = offsets or [0] * len(texts)
    spans = [
        range(start + text.n_prompt - 1, start + len(text) - 1)
        for text, start in zip(texts, starts, strict=True)
    ]
    columns = sorted(set().union(*spans))
    place = {column: index for index, column in enumerate(columns)}
    rows = torch.tensor([row for row, span in enumerate(spans) for _ in span])
    return rows, torch.tensor([place[column] for span in spans for column in span]), columns


def logits_at(
    lm: LanguageModel, batch: TokenBatch, columns: Sequence[int]
) -> Float[Tensor, "batch column vocab"]:
    """Runs a batch and returns the logits at some of its columns.

    Args:
        lm: The model.
        batch: Texts.
        columns: Which; the head is left out elsewhere where the architecture can.

    Returns:
        Logits in the model's dtype, on its device.
    """
    wanted = torch.tensor(columns, device=lm.device)
    inputs = {
        "input_ids": batch.token_ids.to(lm.device),
        "attention_mask": batch.is_real.long().to(lm.device),
    }
    # Leaves the head out elsewhere; not every architecture knows the argument.
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        logits: Tensor = lm.model(**inputs, use_cache=False, logits_to_keep=wanted).logits
        return logits
    every: Tensor = lm.model(**inputs, use_cache=False).logits
    return every[:, wanted]


def check_answers(lm: LanguageModel, texts: Sequence[EncodedText], batch_size: int) -> None:
    """Refuses texts that a model cannot read, or whose answers nothing precedes.

    Args:
        lm: The model.
        texts: Prompts with answers.
        batch_size: Texts per batch.

    Raises:
        DataError: If there is no text, or one is too long or has no prompt or no answer.
    """
    check_texts(lm, texts, batch_size)
    for index, text in enumerate(texts):
        if not 0 < text.n_prompt < len(text):
            raise DataError(
                f"text {index} has {text.n_prompt} prompt tokens of {len(text)}: "
                "scoring needs a prompt and an answer, encode it with one"
            )


def answer_lengths(texts: Sequence[EncodedText]) -> list[int]:
    """Returns how many tokens each answer has."""
    return [len(text) - text.n_prompt for text in texts]


def check_finite(values: Float[Tensor, " text"], what: str) -> None:
    """Refuses numbers per text that are NaN or infinite.

    Args:
        values: One per text.
        what: What they are, for the message.

    Raises:
        NonFiniteError: If one of them is.
    """
    if bool(torch.isfinite(values).all()):
        return
    index = int((~torch.isfinite(values)).nonzero()[0, 0])
    raise NonFiniteError(
        f"{what} of text {index} is NaN or infinite: weaken the edit, or load the model with dtype "
        "float32"
    )
