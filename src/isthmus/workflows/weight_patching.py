"""The alternatives to a switch: exchanging weights, and low-rank differences of weights.

1. Weight patching copies some of another model's parameters into a copy of the model.
2. Overwriting the states at every position of a block's output is the same as copying embedding and
   all blocks up to it: what comes later sees nothing else. So direct patching is built that way.
3. A LoRA between two models is, at its best for a rank, the truncated singular value decomposition
   of every matrix's difference.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from isthmus.core.errors import ConfigError
from isthmus.models.language_model import LanguageModel, wrap_language_model
from isthmus.models.placement import require_one_device


@dataclass(frozen=True)
class Hybrid:
    """A model between two others.

    Attributes:
        lm: The model.
        n_parameters: How many numbers have to be kept beside the model to switch to it and back.
    """

    lm: LanguageModel
    n_parameters: int


def uniform_layers(n_layers: int, k: int) -> tuple[int, ...]:
    """Returns k layers spread evenly over a model, 0-based.

    >>> uniform_layers(6, 3)
    (0, 2, 5)

    Args:
        n_layers: How many there are.
        k: How many are chosen, from 1 to `n_layers`.

    Returns:
        Layers in order.

    Raises:
        ConfigError: If there are not that many.
    """
    if not 1 <= k <= n_layers:
        raise ConfigError(f"{k} of {n_layers} layers: choose from 1 to {n_layers}")
    if k == 1:
        return (n_layers // 2,)
    return tuple(round(i * (n_layers - 1) / (k - 1)) for i in range(k))


def with_blocks(
    lm: LanguageModel, other: LanguageModel, layers: Iterable[int], *, embeddings: bool = False
) -> Hybrid:
    """Copies another model's blocks, and its embeddings if wanted, into a copy of a model.

    Args:
        lm: The model; left unchanged.
        other: Where the weights come from; of the same architecture.
        layers: Blocks that are copied.
        embeddings: Whether the token embedding is copied; a head tied to it comes along.

    Returns:
        The patched model.
    """
    starts = tuple(f"{lm.layout.blocks[layer].name}." for layer in layers)
    tokens = {name for name, value in _parameters(lm) if value is lm.layout.embedding.weight}

    def change(name: str, own: Tensor, new: Tensor) -> tuple[Tensor, int]:
        is_wanted = name.startswith(starts) or (embeddings and name in tokens)
        return (new, new.numel()) if is_wanted else (own, 0)

    return _hybrid(lm, other, change)


def with_states(lm: LanguageModel, other: LanguageModel, layer: int) -> Hybrid:
    """Makes the model whose states after one block are another model's, at every position.

    The head stays the model's own, also where it is tied to the embedding.

    Args:
        lm: The model; left unchanged.
        other: Whose states are patched in; of the same architecture.
        layer: Last block whose output is patched.

    Returns:
        A model that computes what direct patching computes, in generation, too.
    """
    starts = tuple(f"{block.name}." for block in lm.layout.blocks[: layer + 1])
    tokens = {name for name, value in _parameters(lm) if value is lm.layout.embedding.weight}

    def change(name: str, own: Tensor, new: Tensor) -> tuple[Tensor, int]:
        is_below = name.startswith(starts) or name in tokens
        return (new, new.numel()) if is_below else (own, 0)

    return _hybrid(lm, other, change, unties=True)


def with_low_rank_weights(lm: LanguageModel, other: LanguageModel, rank: int) -> Hybrid:
    """Adds to every matrix the best approximation of a rank to its difference from another model.

    W + U_r S_r V_rᵀ, the truncated singular value decomposition of W_other - W; vectors, such as
    norms, are exchanged.

    Args:
        lm: The model; left unchanged.
        other: The model to be approximated; of the same architecture.
        rank: From 1; at the smaller side of a matrix the exchange is exact.

    Returns:
        The model with these adapters merged.
    """

    def change(_name: str, own: Tensor, new: Tensor) -> tuple[Tensor, int]:
        if own.ndim != 2:
            return new, new.numel()
        return own + _truncated(new - own, rank), min(rank * sum(own.shape), own.numel())

    return _hybrid(lm, other, change)


def _truncated(difference: Float[Tensor, "rows columns"], rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(difference.float(), full_matrices=False)
    product: Tensor = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return product.to(difference.dtype)


def _parameters(lm: LanguageModel) -> Sequence[tuple[str, nn.Parameter]]:
    return list(lm.model.named_parameters())


@torch.no_grad()
def _hybrid(
    lm: LanguageModel,
    other: LanguageModel,
    change: Callable[[str, Tensor, Tensor], tuple[Tensor, int]],
    *,
    unties: bool = False,
) -> Hybrid:
    for one in (lm, other):
        require_one_device(one.model, "exchange weights of")
    made = copy.deepcopy(lm.model)
    if unties:
        _untie(made)
    source = dict(other.model.named_parameters())
    n_changed = 0
    for name, value in made.named_parameters():
        # After untying, the head has a name of its own that the other model may not have.
        new, n_new = change(name, value, source.get(name, value))
        value.copy_(new)
        n_changed += n_new
    name = f"{lm.identity.name} with weights of {other.identity.name}"
    return Hybrid(wrap_language_model(made, lm.tokenizer, name), n_changed)


def _untie(model: PreTrainedModel) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
