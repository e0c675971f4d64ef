"""Starts forward passes in the middle: what lies below an edit is computed once and kept.

1. `prefix_states` reads the outputs of blocks for all texts.
2. `can_resume` checks that a pass which starts there ends as a whole pass does.
3. `resuming` makes the blocks up to that one hand the kept states on instead of computing them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.core.errors import DataError
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import EncodedText, TokenBatch, pad_batch
from isthmus.models.batching import padded_batches
from isthmus.models.hooks import run_until_captured
from isthmus.models.language_model import LanguageModel
from isthmus.models.layouts import ModelLayout

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class PrefixStates:
    """What one block wrote for some texts, batch by batch.

    Attributes:
        layer: The block.
        batch_size: Texts per batch; a pass that resumes must cut the texts alike.
        batches: Output of the block for every padded batch, on the model's device and in its dtype.
        in_tuple: Whether blocks of this model wrap their output in a tuple.
    """

    layer: int
    batch_size: int
    batches: tuple[Float[Tensor, "_ _ d_model"], ...]
    in_tuple: bool

    def check_fits(self, n_texts: int, batch_size: int) -> None:
        """Refuses to resume other texts than those it was computed for.

        Args:
            n_texts: How many texts are read.
            batch_size: Texts per batch.

        Raises:
            DataError: If the batches are not those that were kept.
        """
        own = sum(len(states) for states in self.batches)
        if (n_texts, batch_size) != (own, self.batch_size):
            raise DataError(
                f"states of {own} texts in batches of {self.batch_size} were kept, {n_texts} texts "
                f"in batches of {batch_size} are read: compute the prefix for these"
            )


def last_shared_layer(sites: Sequence[Site]) -> int | None:
    """Returns the last block whose output edits at some sites cannot change, or can only follow.

    Args:
        sites: Where a model is edited.

    Returns:
        A layer; None when the first block is edited before its end, or there is no site.

    >>> last_shared_layer([Site(2), Site(4)])
    2
    """
    layers = [s.layer if s.stream is Stream.RESID_POST else s.layer - 1 for s in sites]
    first = min(layers, default=-1)
    return None if first < 0 else first


def prefix_states(
    lm: LanguageModel, texts: Sequence[EncodedText], layers: Sequence[int], batch_size: int
) -> dict[int, PrefixStates]:
    """Computes the outputs of some blocks for every text, padded on the right, in one pass.

    Args:
        lm: The model.
        texts: What it reads.
        layers: The blocks.
        batch_size: Texts per batch.

    Returns:
        The states by layer.

    Raises:
        SiteError: If no layer is given or the model does not have one of them.
    """
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    in_tuple = False
    for number, (_, batch) in enumerate(padded_batches(lm, texts, "right", batch_size)):
        if number == 0:
            in_tuple = block_returns_tuple(lm, batch)
        for site, states in _outputs_of(lm, batch, [Site(layer) for layer in layers]).items():
            kept[site.layer].append(states)
    return {
        layer: PrefixStates(layer, batch_size, tuple(batches), in_tuple)
        for layer, batches in kept.items()
    }


def can_resume(lm: LanguageModel, texts: Sequence[EncodedText], prefix: PrefixStates) -> bool:
    """Says whether a pass over the first batch that starts with kept states ends as a whole one.

    It does not where blocks hand on more than the residual stream.

    Args:
        lm: The model.
        texts: What the states are of.
        prefix: The states.

    Returns:
        Whether all logits agree to 1e-5.
    """
    _, batch = next(iter(padded_batches(lm, texts, "right", prefix.batch_size)))
    return _ends_alike(lm, batch, prefix)


def start_above(lm: LanguageModel, batch: TokenBatch, layer: int) -> PrefixStates | None:
    """Tries on two texts of a batch whether passes of a model can start above a block.

    Args:
        lm: The model.
        batch: Texts.
        layer: The block.

    Returns:
        The block's output for the two, or None where logits differ by more than 1e-5 from those of
        a whole pass.
    """
    batch = pad_batch(batch.texts[:2], lm.pad_id, "right")
    (prefix,) = states_of(lm, batch, [layer]).values()
    return prefix if _ends_alike(lm, batch, prefix) else None


def states_of(
    lm: LanguageModel, batch: TokenBatch, layers: Sequence[int]
) -> dict[int, PrefixStates]:
    """Reads the outputs of some blocks for one batch in one pass, which ends with the last of them.

    Args:
        lm: The model.
        batch: Texts.
        layers: The blocks; nothing is run for none.

    Returns:
        The states by layer, each as those of a single batch.

    Raises:
        SiteError: If the model does not have one of the layers.
    """
    if not layers:
        return {}
    in_tuple = block_returns_tuple(lm, pad_batch(batch.texts[:1], lm.pad_id, "right"))
    read = _outputs_of(lm, batch, [Site(layer) for layer in layers])
    return {
        site.layer: PrefixStates(site.layer, len(states), (states,), in_tuple)
        for site, states in read.items()
    }


def _ends_alike(lm: LanguageModel, batch: TokenBatch, prefix: PrefixStates) -> bool:
    with resuming(lm.layout, prefix, 0):
        try:
            found = _logits(lm, batch)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError):
            # A block that needs more than the residual stream fails in its own way.
            return False
    return torch.allclose(_logits(lm, batch), found, rtol=_TOLERANCE, atol=_TOLERANCE)


@torch.inference_mode()
def _outputs_of(lm: LanguageModel, batch: TokenBatch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    ids, is_real = batch.token_ids.to(lm.device), batch.is_real.to(lm.device)
    return run_until_captured(lm.layout, sites, ids, is_real)


@torch.inference_mode()
def _logits(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    ids, is_real = batch.token_ids.to(lm.device), batch.is_real.to(lm.device)
    logits: Tensor = lm.model(input_ids=ids, attention_mask=is_real.long(), use_cache=False).logits
    return logits[is_real].float()


def block_returns_tuple(lm: LanguageModel, batch: TokenBatch) -> bool:
    """Says whether blocks of a model wrap their output in a tuple.

    Args:
        lm: The model.
        batch: What it is run on to find out.

    Returns:
        Whether the first block does.
    """
    block = lm.layout.blocks[0].module
    own: Callable[..., Any] = block.forward
    seen: list[bool] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        seen.append(isinstance(made, tuple))
        return made

    with ExitStack() as undo:
        undo.callback(_replace_forward(block, note))
        _outputs_of(lm, batch, [Site(0)])
    return seen[0]


@contextmanager
def resuming(layout: ModelLayout, prefix: PrefixStates, number: int) -> Iterator[None]:
    """Makes forward passes start with the kept output of one block.

    Blocks up to it do not compute; hooks on them still run, so that edits of `resid_post[layer]`
    act as ever. Passes must read the batch that the states are of, without a key-value cache.

    Args:
        layout: Where the blocks are.
        prefix: The states.
        number: Which of their batches is read.

    Yields:
        None: While the block runs, the model is changed; afterwards it is as before.
    """
    with ExitStack() as undo:
        for index, block in enumerate(layout.blocks[: prefix.layer + 1]):
            made = None if index < prefix.layer else prefix.batches[number]
            if made is not None and layout.writes_in_place:
                made = made.clone()
            forward = partial(_hand_on, made, prefix.in_tuple)
            undo.callback(_replace_forward(block.module, forward))
        yield


def _hand_on(made: Tensor | None, in_tuple: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001
    given = args[0] if args else kwargs["hidden_states"]
    handed = given if made is None else made
    return (handed,) if in_tuple else handed


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Puts another forward on a module; returns what puts its own back."""
    own = vars(module).get("forward")
    module.forward = forward
    return partial(_restore_forward, module, own)


def _restore_forward(module: nn.Module, own: Any) -> None:
    # Wrappers such as accelerate's keep a forward of their own on the instance.
    if own is None:
        del module.forward
    else:
        module.forward = own
