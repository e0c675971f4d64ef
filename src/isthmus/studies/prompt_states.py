"""Puts each prompt's own states at its last tokens, whatever batch it comes in."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError, ShapeError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.interventions.row_replacement import RowReplacement

_StatesByPrompt = Mapping[tuple[int, ...], Float[Tensor, "position d_model"]]


def place_states(
    texts: Sequence[EncodedText],
    states: Float[Tensor, "prompt position d_model"],
    site: Site,
) -> Callable[[TokenBatch], Sequence[PlacedEdit]]:
    """Returns what overwrites the states of the last prompt tokens, with or without an answer.

    Args:
        texts: Prompts, or prompts with answers.
        states: For every prompt the states of its last tokens, in text order.
        site: Where they go.

    Returns:
        A function from a batch of these prompts, padded on either side, to placed edits.

    Raises:
        ShapeError: If there are not as many states as prompts.
    """
    if len(texts) != len(states):
        raise ShapeError(f"{len(states)} states for {len(texts)} prompts: give one per prompt")
    # Batches come in another order, and with or without answers: the prompt's tokens find the row.
    by_prompt = {_prompt_ids(text): row for text, row in zip(texts, states, strict=True)}

    def place(batch: TokenBatch) -> list[PlacedEdit]:
        return [_replacement(batch, by_prompt, states.shape[-1]).at(site)]

    return place


def _replacement(batch: TokenBatch, by_prompt: _StatesByPrompt, d_model: int) -> RowReplacement:
    rows = torch.zeros(*batch.token_ids.shape, d_model)
    mask = torch.zeros_like(batch.is_real)
    for row, (text, offset) in enumerate(zip(batch.texts, batch.offsets, strict=True)):
        found = by_prompt.get(_prompt_ids(text))
        if found is None or len(found) > text.n_prompt:
            raise DataError(f"no states for the prompt of {text.text!r}: encode the same prompts")
        end = offset + text.n_prompt
        rows[row, end - len(found) : end] = found.float()
        mask[row, end - len(found) : end] = True
    return RowReplacement(rows, mask)


def _prompt_ids(text: EncodedText) -> tuple[int, ...]:
    return text.token_ids[: text.n_prompt]
