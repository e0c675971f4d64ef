"""Texts as tokens, and batches of them: what models, alignment and position selectors share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from isthmus.core.errors import ConfigError, DataError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class EncodedText:
    """A rendered prompt, with or without its answer, as one model's tokenizer sees it.

    Attributes:
        text: The whole rendered text, chat template included; the same for every model that has
            the same template.
        token_ids: One id per token.
        ends: For every token, how many characters of `text` had been read when a token last ended
            between two of them: this one, or an earlier one if this one stops within a character.
        is_special: For every token, whether it is a special piece (begin, end, pad, role marker).
        n_prompt: How many leading tokens are prompt; the rest is answer.
        trigger: First and one-past-last token of the trigger, or None when the prompt has none.
        message: First and one-past-last character of the user's message, or None if not known.
    """

    text: str
    token_ids: tuple[int, ...]
    ends: tuple[int, ...]
    is_special: tuple[bool, ...]
    n_prompt: int
    trigger: tuple[int, int] | None = None
    message: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class TokenBatch:
    """Encoded texts padded to one width.

    Attributes:
        texts: The texts, one per row.
        token_ids: Ids, padding filled with the pad id.
        is_real: False on padding.
        offsets: For every row, the column of its first token (0 with padding on the right).
        indices: For every row, which of the caller's texts it is: what differs from text to text
            is found by it, also where two texts are alike.
    """

    texts: tuple[EncodedText, ...]
    token_ids: Int[Tensor, "batch pos"]
    is_real: Bool[Tensor, "batch pos"]
    offsets: tuple[int, ...]
    indices: tuple[int, ...]


def pad_batch(
    texts: Sequence[EncodedText],
    pad_id: int,
    side: Side,
    indices: Sequence[int] | None = None,
) -> TokenBatch:
    """Pads texts to the longest of them.

    Args:
        texts: At least one text.
        pad_id: What fills the padding.
        side: Where the padding goes: `left` to generate, `right` to score or capture.
        indices: Which of the caller's texts these are; 0, 1, 2, … when not given.

    Returns:
        The batch, on the CPU, rows in the order of the texts.

    Raises:
        DataError: If there is no text.
    """
    if not texts:
        raise DataError("no texts to pad: give at least one")
    width = max(len(text) for text in texts)
    token_ids = torch.full((len(texts), width), pad_id, dtype=torch.long)
    is_real = torch.zeros(len(texts), width, dtype=torch.bool)
    offsets = tuple(width - len(text) if side == "left" else 0 for text in texts)
    for row, (text, offset) in enumerate(zip(texts, offsets, strict=True)):
        token_ids[row, offset : offset + len(text)] = torch.tensor(text.token_ids)
        is_real[row, offset : offset + len(text)] = True
    own = range(len(texts)) if indices is None else indices
    return TokenBatch(tuple(texts), token_ids, is_real, offsets, tuple(own))


def length_buckets(
    lengths: Sequence[int], batch_size: int, *, pass_cost: int | None = None
) -> list[list[int]]:
    """Groups indices into batches of like length, longest first, so that little is padded.

    Args:
        lengths: Length of every text.
        batch_size: Most texts in one batch, at least 1.
        pass_cost: What a batch costs beside its tokens, padding included, counted in tokens, not
            negative: batches are cut where all of them cost least. When not given, they are filled.

    Returns:
        Every index once; without `pass_cost` all batches but the last are full.

    Raises:
        ConfigError: If `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if pass_cost is None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    ends = _cheapest_ends([lengths[i] for i in order], batch_size, pass_cost)
    buckets, start = [], 0
    while start < len(order):
        buckets.append(order[start : ends[start]])
        start = ends[start]
    return buckets


def _cheapest_ends(falling: Sequence[int], batch_size: int, pass_cost: int) -> list[int]:
    """Returns for every text where a batch that begins with it ends, if none before it matters."""
    n = len(falling)
    costs, ends = [0] * (n + 1), [n] * n
    for start in reversed(range(n)):
        longest = falling[start]
        least = None
        for end in range(start + 1, min(start + batch_size, n) + 1):
            # The last one alone would be cheaper.
            if longest - falling[end - 1] > pass_cost:
                break
            cost = pass_cost + (end - start) * longest + costs[end]
            if least is None or cost <= least:
                least, ends[start] = cost, end
        costs[start] = least or 0
    return ends
