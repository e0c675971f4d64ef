"""Passes over several edited copies of the same texts, which share all that no edit reaches.

1. `share` reads the texts once, unedited: it keeps keys and values of the tokens before the first
   one that is edited, and what blocks write at all later ones.
2. `answer_logprobs_of_copies` runs copies side by side in one batch. It starts at the first edited
   token, above the lowest block that is edited, and asks the head for answers alone.
3. `is_faithful` checks that such a pass ends as a whole one does.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch, length_buckets
from isthmus.models.hooks import editing, run_until_captured
from isthmus.models.language_model import LanguageModel
from isthmus.models.resuming import PrefixStates, block_returns_tuple, resuming
from isthmus.models.rotary_limits import read_alike
from isthmus.models.scoring import answer_logprobs, answer_places

_TOLERANCE = 2e-5
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)
"""How models fail that need more than keys, values and the residual stream; each in its own way."""


@dataclass(frozen=True)
class SharedBatch:
    """Some texts, laid out so that what has to be run begins at one column in every row.

    Attributes:
        indices: Which texts.
        batch: The texts, padded before and behind.
        n_before: Columns of which keys and values are kept; the first that is run comes next.
        memory: Keys and values of these columns, block by block; empty where there are none.
        states: Outputs of blocks, by layer, at the columns that are run.
    """

    indices: tuple[int, ...]
    batch: TokenBatch
    n_before: int
    memory: tuple[tuple[Tensor, Tensor], ...]
    states: Mapping[int, Float[Tensor, "text pos d_model"]]

    @property
    def n_run(self) -> int:
        """Columns that a pass computes."""
        return self.batch.token_ids.shape[1] - self.n_before


@dataclass(frozen=True)
class SharedTexts:
    """What edited copies of some texts share.

    Attributes:
        batches: The texts in batches of like length.
        in_tuple: Whether blocks of this model wrap their output in a tuple.
    """

    batches: tuple[SharedBatch, ...]
    in_tuple: bool

    @property
    def n_numbers(self) -> int:
        """How many activations, keys and values are held."""
        kept = [one for own in self.batches for one in own.states.values()]
        kept += [one for own in self.batches for pair in own.memory for one in pair]
        return sum(one.numel() for one in kept)


def share(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    starts: Sequence[int],
    layers: Sequence[int],
    batch_size: int,
) -> SharedTexts:
    """Reads texts once for all copies of them that will be edited.

    Args:
        lm: The model.
        texts: Prompts with answers.
        starts: For every text the first token that an edit may reach; at most the last prompt
            token, because the first answer token is predicted there.
        layers: Blocks above which passes may start.
        batch_size: Texts per batch, at least 1.

    Returns:
        What the copies share. Where a model keeps no keys and values of its tokens, all tokens are
        run.

    Raises:
        DataError: If a start is not among a text's prompt tokens.
    """
    for index, (text, start) in enumerate(zip(texts, starts, strict=True)):
        if not 0 <= start < text.n_prompt < len(text):
            raise DataError(
                f"text {index} has {text.n_prompt} prompt tokens of {len(text)} and starts at "
                f"{start}: expected a start within the prompt, and an answer"
            )
    found: list[SharedBatch] = []
    for indices in _batches(lm, texts, starts, batch_size):
        try:
            found.append(_read(lm, texts, starts, indices, layers))
        except _FAILURES:
            if not any(starts):
                raise
            return share(lm, texts, [0] * len(texts), layers, batch_size)
    return SharedTexts(tuple(found), block_returns_tuple(lm, found[0].batch))


def whole_logprobs(lm: LanguageModel, shared: SharedTexts) -> Float[Tensor, "token vocab"]:
    """Returns what whole passes over the first batch predict at all answer positions."""
    texts = shared.batches[0].batch.texts
    return torch.cat(answer_logprobs(lm, texts, batch_size=len(texts)))


def is_faithful(
    lm: LanguageModel,
    shared: SharedTexts,
    layer: int | None,
    whole: Float[Tensor, "token vocab"],
) -> bool:
    """Says whether a pass over the first batch that shares ends as a whole one.

    Args:
        lm: The model.
        shared: What the pass starts from.
        layer: The block above which it starts; None for the embeddings.
        whole: What `whole_logprobs` returned.

    Returns:
        Whether log-probabilities at all answer positions agree to 2e-5.
    """
    try:
        found = answer_logprobs_of_copies(lm, shared, 0, 1, (), layer)
    except _FAILURES:
        return False
    return torch.allclose(whole, found.cpu(), rtol=_TOLERANCE, atol=_TOLERANCE)


@torch.inference_mode()
def answer_logprobs_of_copies(
    lm: LanguageModel,
    shared: SharedTexts,
    number: int,
    n_copies: int,
    placed: Sequence[PlacedEdit],
    layer: int | None,
) -> Float[Tensor, "token vocab"]:
    """Runs edited copies of one batch and returns log p(every token) where answers are predicted.

    Args:
        lm: The model.
        shared: What the copies share.
        number: Which of its batches.
        n_copies: How many copies of it are run.
        placed: Edits of all rows: those of the first copy, then those of the next. None may act
            below the block or before the first column that is run.
        layer: The block above which the pass starts; None for the embeddings.

    Returns:
        Log-probabilities, copy after copy, text after text, in float32 on the model's device.
    """
    own = shared.batches[number]
    rows, kept, columns = _answer_columns(own)
    step = len(columns)
    ids = own.batch.token_ids[:, own.n_before :].repeat(n_copies, 1)
    is_real = own.batch.is_real.repeat(n_copies, 1)
    with ExitStack() as stack:
        if layer is not None:
            states = own.states[layer].repeat(n_copies, 1, 1)
            start = PrefixStates(layer, len(states), (states,), shared.in_tuple)
            stack.enter_context(resuming(lm.layout, start, 0))
        stack.enter_context(editing(lm.layout, placed))
        logits = _logits(lm, ids, is_real, _memory(own, n_copies), columns)
    flat = logits.reshape(n_copies, -1, logits.shape[-1])
    index = (rows * step + kept).to(lm.device)
    return flat[:, index].flatten(0, 1).float().log_softmax(-1)


def _batches(
    lm: LanguageModel, texts: Sequence[EncodedText], starts: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    order = _order(texts, starts)
    for group in read_alike(lm, [len(text) for text in texts]):
        for bucket in length_buckets([order[i] for i in group], batch_size):
            yield [group[i] for i in bucket]


def _order(texts: Sequence[EncodedText], starts: Sequence[int]) -> list[int]:
    """What texts of a batch should have alike: first how much is run, then how much is kept."""
    most = max(len(text) for text in texts) + 1
    return [(len(text) - start) * most + start for text, start in zip(texts, starts, strict=True)]


def _read(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    starts: Sequence[int],
    indices: Sequence[int],
    layers: Sequence[int],
) -> SharedBatch:
    n_before = max(starts[i] for i in indices)
    batch = _laid_out(lm, [texts[i] for i in indices], [starts[i] for i in indices], n_before)
    memory: tuple[tuple[Tensor, Tensor], ...] = ()
    cache = DynamicCache() if n_before else None
    inputs = {} if cache is None else {"past_key_values": cache, **_places(lm, batch.is_real)}
    states = _states(lm, batch, layers if cache is None else range(lm.n_layers), inputs)
    if cache is not None:
        # Copies, so that keys and values of the tokens that are run again are not held on to.
        layers_of_cache: Sequence[Any] = cache.layers
        memory = tuple(
            (one.keys[:, :, :n_before].clone(), one.values[:, :, :n_before].clone())
            for one in layers_of_cache
        )
        if len(memory) != lm.n_layers:
            raise ValueError("a block keeps no keys and values")
    kept = {layer: states[Site(layer)][:, n_before:].clone() for layer in layers}
    return SharedBatch(tuple(indices), batch, n_before, memory, kept)


@torch.inference_mode()
def _states(
    lm: LanguageModel, batch: TokenBatch, layers: Sequence[int], inputs: Mapping[str, Any]
) -> dict[Site, Tensor]:
    if not layers:
        return {}
    ids, is_real = batch.token_ids.to(lm.device), batch.is_real.to(lm.device)
    return run_until_captured(lm.layout, [Site(layer) for layer in layers], ids, is_real, **inputs)


def _laid_out(
    lm: LanguageModel, texts: Sequence[EncodedText], starts: Sequence[int], n_before: int
) -> TokenBatch:
    """Pads texts so that all their starts are in one column."""
    offsets = tuple(n_before - start for start in starts)
    width = max(offset + len(text) for text, offset in zip(texts, offsets, strict=True))
    token_ids = torch.full((len(texts), width), lm.pad_id, dtype=torch.long)
    is_real = torch.zeros(len(texts), width, dtype=torch.bool)
    for row, (text, offset) in enumerate(zip(texts, offsets, strict=True)):
        token_ids[row, offset : offset + len(text)] = torch.tensor(text.token_ids)
        is_real[row, offset : offset + len(text)] = True
    return TokenBatch(tuple(texts), token_ids, is_real, offsets, tuple(range(len(texts))))


def _places(lm: LanguageModel, is_real: Tensor) -> dict[str, Tensor]:
    """Numbers the tokens of every row from 0, for models that are told."""
    if "position_ids" not in inspect.signature(lm.layout.root.forward).parameters:
        return {}
    return {"position_ids": (is_real.long().cumsum(1) - 1).clamp_min(0).to(lm.device)}


def _memory(own: SharedBatch, n_copies: int) -> DynamicCache | None:
    if not own.memory:
        return None
    cache = DynamicCache()
    for layer, pair in enumerate(own.memory):
        keys, values = (one.repeat(n_copies, 1, 1, 1) for one in pair)
        cache.update(keys, values, layer)
    return cache


def _answer_columns(own: SharedBatch) -> tuple[Tensor, Tensor, list[int]]:
    """Returns row and place of every answer token, and the columns that hold these places."""
    starts = [offset - own.n_before for offset in own.batch.offsets]
    return answer_places(own.batch.texts, starts)


def _logits(
    lm: LanguageModel,
    ids: Tensor,
    is_real: Tensor,
    memory: DynamicCache | None,
    columns: Sequence[int],
) -> Float[Tensor, "row column vocab"]:
    wanted = torch.tensor(columns, device=lm.device)
    inputs: dict[str, Any] = {
        "input_ids": ids.to(lm.device),
        "attention_mask": is_real.long().to(lm.device),
        "use_cache": False,
    }
    if memory is not None:
        places = {name: one[:, -ids.shape[1] :] for name, one in _places(lm, is_real).items()}
        inputs |= {"past_key_values": memory, **places}
    # Leaves the head out elsewhere; not every architecture knows the argument.
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        logits: Tensor = lm.model(**inputs, logits_to_keep=wanted).logits
        return logits
    every: Tensor = lm.model(**inputs).logits
    return every[:, wanted]
