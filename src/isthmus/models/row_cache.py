"""A key-value cache whose rows begin at different columns, so that rows can come and go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from isthmus.core.errors import ModelError
from isthmus.models.hooks import unmetered
from isthmus.models.language_model import LanguageModel
from isthmus.models.probing import probe_tokens

Held = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of every layer."""

_GROWING = {DynamicLayer, DynamicSlidingWindowLayer}


_returns_cache: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.inference_mode()
def returns_cache(lm: LanguageModel) -> bool:
    """Says whether a model remembers a text in a cache of transformers that knows its length.

    Args:
        lm: The model; it is run on a few tokens when it is asked about for the first time.

    Returns:
        False where it has no memory, or a state of a kind of its own, or one that asks a layer
        without keys how many tokens it has read (MiniMax).
    """
    if lm.model not in _returns_cache:
        _returns_cache[lm.model] = not growing_cache_fault(lm) or _is_cache_returned(lm)
    return _returns_cache[lm.model]


def _is_cache_returned(lm: LanguageModel) -> bool:
    if "use_cache" not in signature(type(lm.model).forward).parameters:
        return False
    ids = probe_tokens(lm.layout.embedding)
    with unmetered():
        made = lm.model(ids, use_cache=True)
    caches = [one for one in made.values() if isinstance(one, Cache)]
    return any(_knows_length(one, ids.shape[1]) for one in caches)


def _knows_length(cache: Cache, n_read: int) -> bool:
    # What was read by states that are purely recurrent is counted from the first token on.
    is_recurrent = not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
    return is_recurrent or int(cache.get_seq_length()) == n_read


def growing_cache_fault(lm: LanguageModel) -> str:
    """Says what a model keeps of a text beside one key and one value per token and layer.

    Args:
        lm: The model.

    Returns:
        Names of what layers keep, such as a recurrent state; empty if there is none.
    """
    # Recurrent models of an older kind take and return a state of their own.
    if (
        getattr(type(lm.model), "_is_stateful", False)
        or "past_key_values" not in signature(type(lm.model).forward).parameters
    ):
        return "a state of its own"
    kinds = getattr(lm.model.config.get_text_config(decoder=True), "layer_types", None) or []
    layers = DynamicCache(config=lm.model.config).layers
    other = {type(layer).__name__ for layer in layers if type(layer) not in _GROWING}
    other |= {kind for kind in kinds if kind not in {"full_attention", "sliding_attention"}}
    return ", ".join(sorted(other))


def shortest_window(lm: LanguageModel) -> int | None:
    """Returns the shortest sliding window of a model's layers; None if every layer sees all.

    Args:
        lm: The model.

    Returns:
        Its length in tokens.
    """
    layers = DynamicCache(config=lm.model.config).layers
    sliding = [one for one in layers if isinstance(one, DynamicSlidingWindowLayer)]
    return min((int(one.sliding_window) for one in sliding), default=None)


def require_growing_cache(lm: LanguageModel) -> None:
    """Refuses models whose memory of a text is not one key and one value per token and layer.

    Args:
        lm: The model.

    Raises:
        ModelError: If a layer keeps a recurrent state, or attends by chunks.
    """
    if other := growing_cache_fault(lm):
        raise ModelError(
            f"{lm.identity.name} keeps {other}, which cannot be moved from batch to batch: "
            "continuous decoding needs attention everywhere, use generate_greedy"
        )


@dataclass
class RowCache:
    """Keys and values of several rows, all ending in the last column, padded on the left.

    Nothing is ever cut off at a sliding window: the window is in the model's mask, which needs the
    distance of columns only, and that is the distance of positions.

    Attributes:
        cache: What the model reads and appends to.
        lengths: How many tokens of every row it holds.
        device: Where masks are made.
    """

    cache: DynamicCache
    lengths: list[int]
    device: torch.device
    _starts: Int[Tensor, " batch"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._note_starts()

    def _note_starts(self) -> None:
        # Constant while the rows stay, so that a step copies nothing to the accelerator.
        starts = [self.width - length for length in self.lengths]
        self._starts = torch.tensor(starts, device=self.device)

    @property
    def width(self) -> int:
        """Columns: the tokens of the longest row."""
        return max(self.lengths, default=0)

    def mask(self, n_new: int) -> Int[Tensor, "batch column"]:
        """Returns which columns hold tokens, with as many more as the next pass computes.

        Args:
            n_new: Tokens per row of the next pass.

        Returns:
            1 for tokens and 0 for padding.
        """
        columns = torch.arange(self.width + n_new, device=self.device)
        is_real: Bool[Tensor, "batch column"] = columns >= self._starts[:, None]
        return is_real.long()

    def next_positions(self) -> Int[Tensor, "batch 1"]:
        """Returns the position in its own text of the next token of every row."""
        return (self.width - self._starts)[:, None]

    def grow(self) -> None:
        """Notes that a pass has appended one token to every row."""
        self.lengths = [length + 1 for length in self.lengths]

    @property
    def _layers(self) -> list[DynamicLayer]:
        return cast("list[DynamicLayer]", self.cache.layers)

    def held(self) -> Held:
        """Returns what is held now; passes append to copies, so that it stays as it is."""
        pairs = [(layer.keys, layer.values) for layer in self._layers]
        return cast("Held", pairs)

    def put_back(self, held: Held) -> None:
        """Makes it hold what it held before a pass that failed.

        Args:
            held: What `held` returned.
        """
        for layer, (keys, values) in zip(self._layers, held, strict=True):
            layer.keys, layer.values = keys, values

    def row(self, place: int) -> "RowCache":
        """Returns a copy of what is held of one row.

        Args:
            place: Which.

        Returns:
            Its keys and values without padding.
        """
        cache, start = DynamicCache(), self.width - self.lengths[place]
        for layer, pair in enumerate(self.held()):
            keys, values = (one[place : place + 1, :, start:] for one in pair)
            cache.update(keys, values, layer)
        return RowCache(cache, [self.lengths[place]], self.device)

    def keep(self, rows: Sequence[int]) -> int:
        """Drops all other rows, and columns that are then padding in every row.

        Args:
            rows: Which rows stay, in their new order; at least one.

        Returns:
            How many columns were dropped.
        """
        lengths = [self.lengths[row] for row in rows]
        n_dropped = self.width - max(lengths)
        chosen = torch.tensor(list(rows), device=self.device)
        # Layer by layer, so that no more than one layer is held twice.
        for layer in self._layers:
            pair = cast("tuple[Tensor, Tensor]", (layer.keys, layer.values))
            layer.keys, layer.values = _chosen(pair, chosen, n_dropped)
        self.lengths = lengths
        self._note_starts()
        return n_dropped

    def join(self, other: "RowCache") -> None:
        """Puts the rows of another cache behind its own; the shorter one is padded on the left.

        Args:
            other: Rows of the same model.
        """
        width = max(self.width, other.width)
        pairs = zip(self.held(), other.held(), strict=True)
        self.put_back([_joined(own, new, width) for own, new in pairs])
        self.lengths = [*self.lengths, *other.lengths]
        self._note_starts()


def _chosen(
    pair: tuple[Tensor, Tensor], rows: Int[Tensor, " row"], n_dropped: int
) -> tuple[Tensor, Tensor]:
    # Layers of a model may lie on several devices.
    keys, values = (one[:, :, n_dropped:].index_select(0, rows.to(one.device)) for one in pair)
    return keys, values


def _joined(
    own: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], width: int
) -> tuple[Tensor, Tensor]:
    keys, values = (
        torch.cat([_widened(one, width), _widened(other, width)])
        for one, other in zip(own, new, strict=True)
    )
    return keys, values


def _widened(one: Tensor, width: int) -> Tensor:
    return pad(one, (0, 0, width - one.shape[2], 0))
