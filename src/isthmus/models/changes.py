"""How far edits move the distribution over next tokens on texts that they should leave alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.models.batching import OnBatch, PlaceEdits, ignore, padded_batches
from isthmus.models.language_model import LanguageModel
from isthmus.models.resuming import last_shared_layer, start_above, states_of
from isthmus.models.scoring import (
    Start,
    answer_lengths,
    batch_logprobs,
    check_answers,
    check_finite,
    mean_losses,
    placed_in,
)


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
    it, so nothing has to be generated. Arguments and errors are those of `benign_changes`.

    Args:
        lm: The model.
        texts: Prompts with answers.
        edits: Says what to edit in a batch, which is padded on the right.
        batch_size: Texts per batch, at least 1.
        on_batch: Told after each batch how many texts it held.

    Returns:
        Divergence and rightness of every text.
    """
    return benign_changes(lm, texts, [edits], batch_size=batch_size, on_batch=on_batch)[0]


def benign_changes(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    edits: Sequence[PlaceEdits],
    *,
    batch_size: int = 64,
    on_batch: OnBatch = ignore,
) -> list[BenignChange]:
    """Measures how far each of several edits moves a model, as if it were the only one.

    Every batch is read once unedited for all of them, and passes with an edit start above the
    last block that it leaves alone. Edits are placed batch by batch, all of them in one batch
    before the next one.

    Args:
        lm: The model.
        texts: Prompts with answers.
        edits: Each says what to edit in a batch, which is padded on the right; at least one.
        batch_size: Texts per batch, at least 1.
        on_batch: Told after each batch how many texts it held.

    Returns:
        Divergence and rightness of every text, edit by edit.

    Raises:
        ConfigError: If there is no edit.
        DataError: If there is no text, or one is too long or has no prompt or no answer.
        SiteError: If an edit is at a site that the model does not have.
        ShapeError: If an edit does not fit the model or its masks not the batch.
        NonFiniteError: If a divergence is NaN or infinite.
    """
    if not edits:
        raise ConfigError("there is no edit whose change could be measured: give at least one")
    check_answers(lm, texts, batch_size)
    order: list[int] = []
    found: list[list[BenignChange]] = [[] for _ in edits]
    passes = _SharingPasses(lm, is_worth_it=len(edits) > 1)
    for indices, batch in padded_batches(lm, texts, "right", batch_size):
        for one, change in zip(found, passes.changes(batch, edits), strict=True):
            one.append(change)
        order += indices
        on_batch(len(indices))
    place = torch.tensor(order).argsort()
    return [_joined(changes, place) for changes in found]


class _SharingPasses:
    """Passes over a batch that start above the blocks which no edit reaches."""

    def __init__(self, lm: LanguageModel, *, is_worth_it: bool) -> None:
        self.lm = lm
        self._can_start: dict[int, bool] = {}
        self._is_worth_it = is_worth_it

    def changes(self, batch: TokenBatch, edits: Sequence[PlaceEdits]) -> list[BenignChange]:
        """Measures every edit on one batch."""
        placed = [placed_in(batch, one) for one in edits]
        starts = self._starts(batch, placed)
        lengths = answer_lengths(batch.texts)
        unedited = batch_logprobs(self.lm, batch, (), _last(starts))[0].split(lengths)
        found = []
        for own in placed:
            start = starts.get(last_shared_layer([one.site for one in own]))
            edited, counts = batch_logprobs(self.lm, batch, own, start)
            change = change_of(batch.texts, unedited, edited.split(lengths))
            found.append(replace(change, n_edited=sum(counts)))
        return found

    def _starts(
        self, batch: TokenBatch, placed: Sequence[Sequence[PlacedEdit]]
    ) -> dict[int | None, Start]:
        """Reads what passes with these edits can start from, by layer."""
        if not self._is_worth_it:
            return {}
        shared = {last_shared_layer([one.site for one in own]) for own in placed} - {None}
        layers = sorted(layer for layer in shared if layer is not None and layer < self.lm.n_layers)
        for layer in layers:
            if layer not in self._can_start:
                self._can_start[layer] = start_above(self.lm, batch, layer) is not None
        usable = [layer for layer in layers if self._can_start[layer]]
        return {layer: (states, 0) for layer, states in states_of(self.lm, batch, usable).items()}


def _last(starts: Mapping[int | None, Start]) -> Start | None:
    """Returns the highest block that an unedited pass can start above."""
    return max(starts.values(), key=lambda start: start[0].layer, default=None)


def _joined(changes: Sequence[BenignChange], place: Tensor) -> BenignChange:
    """Returns the changes of all batches as one, in the order of the texts."""
    divergence, was_right, is_right, nll = (
        torch.cat([getattr(one, name) for one in changes])[place]
        for name in ("divergence", "was_right", "is_right", "nll")
    )
    check_finite(divergence, "the divergence")
    return BenignChange(divergence, was_right, is_right, nll, sum(one.n_edited for one in changes))


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
    return BenignChange(divergence, was_right, is_right, mean_losses(edited, texts))


def _is_greedy(logprobs: Float[Tensor, "token vocab"], text: EncodedText) -> bool:
    return logprobs.argmax(-1).tolist() == list(text.token_ids[text.n_prompt :])
