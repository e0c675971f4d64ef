"""Likelihood of given answers, and how far an edit moves the distribution over next tokens."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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

_Start = tuple[PrefixStates, int]
"""Kept states, and which of their batches is read."""


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
    _check_answers(lm, texts, batch_size)
    nll = torch.zeros(len(texts))
    n_edited = [0] * len(texts)
    for indices, batch, start in _batches(lm, texts, batch_size, prefix):
        logprobs, n_here = _answer_logprobs(lm, batch, edits, start)
        nll[list(indices)] = _losses(logprobs.split(_answer_lengths(batch.texts)), batch.texts)
        for index, n in zip(indices, n_here, strict=True):
            n_edited[index] = n
        on_batch(len(indices))
    _check_finite(nll, "the answer's likelihood")
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
    _check_answers(lm, texts, batch_size)
    found: dict[int, Tensor] = {}
    for indices, batch, start in _batches(lm, texts, batch_size, prefix):
        logprobs, _ = _answer_logprobs(lm, batch, edits, start)
        found.update(zip(indices, logprobs.cpu().split(_answer_lengths(batch.texts)), strict=True))
    return [found[index] for index in range(len(texts))]


@dataclass(frozen=True)
class BenignChange:
    """What an edit does to texts that it should leave alone.

    Attributes:
        divergence: Mean KL(unedited ‖ edited) over answer positions, in nats; float32, at least 0.
        was_right: Whether greedy decoding gives the text's answer, end token included, unedited.
        is_right: The same under the edit.
        nll: Mean negative log-likelihood per answer token under the edit, in nats; float32.
        n_edited: How many (position, site) pairs were edited; 0 where nobody counted.
    """

    divergence: Float[Tensor, " text"]
    was_right: Bool[Tensor, " text"]
    is_right: Bool[Tensor, " text"]
    nll: Float[Tensor, " text"]
    n_edited: int = 0

    @property
    def accuracy_loss(self) -> float:
        """Share of right answers before the edit minus that under it; below 0 for a gain."""
        # Counted, not as a difference of shares, which may lie just above the budget it equals.
        return int(self.was_right.sum() - self.is_right.sum()) / len(self.was_right)


def benign_change(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    edits: PlaceEdits,
    *,
    batch_size: int = 64,
    on_batch: OnBatch = ignore,
) -> BenignChange:
    """Measures how far edits move a model, and whether it still gives the texts' answers.

    An answer is greedy exactly where every one of its tokens is the likeliest after those before
    it, so nothing has to be generated.

    Args:
        lm: The model.
        texts: Prompts with answers.
        edits: Says what to edit in a batch, which is padded on the right.
        batch_size: Texts per batch, at least 1.
        on_batch: Told after each batch how many texts it held.

    Returns:
        Divergence and rightness of every text.

    Raises:
        DataError: If there is no text, or one is too long or has no prompt or no answer.
        SiteError: If an edit is at a site that the model does not have.
        ShapeError: If an edit does not fit the model or its masks not the batch.
        NonFiniteError: If a divergence is NaN or infinite.
    """
    _check_answers(lm, texts, batch_size)
    order: list[int] = []
    changes: list[BenignChange] = []
    n_edited = 0
    for indices, batch in padded_batches(lm, texts, "right", batch_size):
        lengths = _answer_lengths(batch.texts)
        unedited, _ = _answer_logprobs(lm, batch, no_edits)
        edited, counts = _answer_logprobs(lm, batch, edits)
        changes.append(change_of(batch.texts, unedited.split(lengths), edited.split(lengths)))
        order += indices
        n_edited += sum(counts)
        on_batch(len(indices))
    place = torch.tensor(order).argsort()
    divergence, was_right, is_right, nll = (
        torch.cat([getattr(one, name) for one in changes])[place]
        for name in ("divergence", "was_right", "is_right", "nll")
    )
    _check_finite(divergence, "the divergence")
    return BenignChange(divergence, was_right, is_right, nll, n_edited)


def change_of(
    texts: Sequence[EncodedText], unedited: Sequence[Tensor], edited: Sequence[Tensor]
) -> BenignChange:
    """Compares log-probabilities at the answer positions of texts.

    Args:
        texts: Prompts with answers.
        unedited: As `answer_logprobs` gives them, one tensor per text.
        edited: The same under an edit.

    Returns:
        Divergence, rightness and loss of every text, on the CPU.
    """
    per_text = [
        (p.exp() * (p - q)).sum(-1).clamp_min(0).mean()
        for p, q in zip(unedited, edited, strict=True)
    ]
    was_right, is_right = (
        torch.tensor([_is_greedy(rows, text) for rows, text in zip(some, texts, strict=True)])
        for some in (unedited, edited)
    )
    divergence = torch.stack(per_text).float().cpu()
    return BenignChange(divergence, was_right, is_right, _losses(edited, texts))


def benign_kl(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    edits: PlaceEdits,
    *,
    batch_size: int = 64,
    on_batch: OnBatch = ignore,
) -> Float[Tensor, " text"]:
    """Measures how far edits move a model: mean KL(unedited ‖ edited) over answer positions.

    Arguments and errors are those of `benign_change`.

    Args:
        lm: The model.
        texts: Prompts with answers.
        edits: Says what to edit in a batch, which is padded on the right.
        batch_size: Texts per batch, at least 1.
        on_batch: Told after each batch how many texts it held.

    Returns:
        Nats per answer token for every text, float32, at least 0.
    """
    return benign_change(lm, texts, edits, batch_size=batch_size, on_batch=on_batch).divergence


def _losses(
    logprobs: Sequence[Float[Tensor, "_ vocab"]], texts: Sequence[EncodedText]
) -> Float[Tensor, " text"]:
    """Returns the mean loss of every text's answer tokens, on the CPU."""
    found = []
    for rows, text in zip(logprobs, texts, strict=True):
        wanted = torch.tensor(text.token_ids[text.n_prompt :], device=rows.device)
        found.append(-rows.gather(1, wanted[:, None]).mean())
    return torch.stack(found).float().cpu()


def _is_greedy(logprobs: Float[Tensor, "token vocab"], text: EncodedText) -> bool:
    return logprobs.argmax(-1).tolist() == list(text.token_ids[text.n_prompt :])


def _batches(
    lm: LanguageModel, texts: Sequence[EncodedText], batch_size: int, prefix: PrefixStates | None
) -> Iterator[tuple[tuple[int, ...], TokenBatch, _Start | None]]:
    """Yields padded batches, each with what its pass starts from, if anything."""
    if prefix is not None:
        prefix.check_fits(len(texts), batch_size)
    batches = padded_batches(lm, texts, "right", batch_size)
    for number, (indices, batch) in enumerate(batches):
        start = None if prefix is None else (prefix, number)
        yield indices, batch, start


@torch.inference_mode()
def _answer_logprobs(
    lm: LanguageModel,
    batch: TokenBatch,
    edits: PlaceEdits,
    start: _Start | None = None,
) -> tuple[Float[Tensor, "token vocab"], list[int]]:
    """Returns log-probabilities at the answer positions, text after text, and counts of edits."""
    spans = [range(text.n_prompt - 1, len(text) - 1) for text in batch.texts]
    columns = sorted(set().union(*spans))
    place = {column: index for index, column in enumerate(columns)}
    rows = torch.tensor([row for row, span in enumerate(spans) for _ in span])
    kept = torch.tensor([place[column] for span in spans for column in span])
    with ExitStack() as stack:
        if start is not None:
            stack.enter_context(resuming(lm.layout, *start))
        count = stack.enter_context(editing(lm.layout, edits(batch)))
        logits = _logits_at(lm, batch, columns)
    return logits[rows, kept].float().log_softmax(-1), count.by_row(len(spans))


def _logits_at(
    lm: LanguageModel, batch: TokenBatch, columns: Sequence[int]
) -> Float[Tensor, "batch column vocab"]:
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


def _check_answers(lm: LanguageModel, texts: Sequence[EncodedText], batch_size: int) -> None:
    check_texts(lm, texts, batch_size)
    for index, text in enumerate(texts):
        if not 0 < text.n_prompt < len(text):
            raise DataError(
                f"text {index} has {text.n_prompt} prompt tokens of {len(text)}: "
                "scoring needs a prompt and an answer, encode it with one"
            )


def _answer_lengths(texts: Sequence[EncodedText]) -> list[int]:
    return [len(text) - text.n_prompt for text in texts]


def _check_finite(values: Float[Tensor, " text"], what: str) -> None:
    if bool(torch.isfinite(values).all()):
        return
    index = int((~torch.isfinite(values)).nonzero()[0, 0])
    raise NonFiniteError(
        f"{what} of text {index} is NaN or infinite: weaken the edit, or load the model with dtype "
        "float32"
    )
