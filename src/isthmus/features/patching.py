"""Which features differ between two classes of states, and states in which one feature is set."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, ShapeError
from isthmus.features.sparse_autoencoder import SparseAutoencoder


class RankedFeatures(NamedTuple):
    """Features in the order of their mean difference, largest first.

    Attributes:
        indices: Which features.
        differences: Mean activation on positive minus mean activation on negative states.
    """

    indices: tuple[int, ...]
    differences: tuple[float, ...]


def rank_features(
    autoencoder: SparseAutoencoder,
    positive: Float[Tensor, "*positive_batch d_model"],
    negative: Float[Tensor, "*negative_batch d_model"],
    n: int,
) -> RankedFeatures:
    """Finds the features that are more active in one class, by mean z₊ - mean z₋.

    Source: arXiv 2503.04429, appendix H.

    Args:
        autoencoder: The features.
        positive: States of the class that shows the behaviour.
        negative: States of the other.
        n: How many features at most, at least 1.

    Returns:
        The n features with the largest difference; of these only such as are above zero.

    Raises:
        ConfigError: If `n` is below 1.
    """
    if n < 1:
        raise ConfigError(f"{n} features: ask for at least 1")
    width = autoencoder.d_model
    means = [
        autoencoder.encode(states.reshape(-1, width)).double().mean(0)
        for states in (positive, negative)
    ]
    largest = (means[0] - means[1]).topk(min(n, autoencoder.d_feature))
    pairs = zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
    found = [(index, value) for index, value in pairs if value > 0]
    return RankedFeatures(tuple(i for i, _ in found), tuple(v for _, v in found))


def with_feature(
    autoencoder: SparseAutoencoder,
    states: Float[Tensor, "*batch d_model"],
    feature: int,
    values: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch d_model"]:
    """Returns the reconstruction of states in which one pre-activation was set before TopK.

    x̂ = decode(act(p)) with p[feature] := value. A large value so displaces the weakest active
    feature, and one below the k largest changes nothing.

    Source: arXiv 2503.04429, appendix H.

    Args:
        autoencoder: The features.
        states: Activations; left unchanged.
        feature: Which feature.
        values: Its pre-activation in every state.

    Returns:
        Reconstructed states.

    Raises:
        ShapeError: If there are not as many values as states.
    """
    encoded = autoencoder.preactivations(states).clone()
    if encoded.shape[:-1] != values.shape:
        raise ShapeError(
            f"values of shape {tuple(values.shape)} for states of shape {tuple(states.shape)}: "
            "give one per state"
        )
    encoded[..., feature] = values.to(encoded)
    return autoencoder.decode(autoencoder.activate(encoded))


def random_features(
    autoencoder: SparseAutoencoder,
    states: Float[Tensor, "*batch d_model"],
    excluded: tuple[int, ...],
    n: int,
    generator: torch.Generator,
) -> tuple[int, ...]:
    """Draws features that are alive, as controls of one that was chosen.

    Args:
        autoencoder: The features.
        states: Activations in which a feature must be active at least once to count as alive.
        excluded: Features that are not drawn.
        n: How many at most.
        generator: Source of randomness.

    Returns:
        Different features, fewer than `n` when not so many are alive.
    """
    is_active = (autoencoder.encode(states.reshape(-1, autoencoder.d_model)) > 0).any(0)
    is_active[list(excluded)] = False
    alive = is_active.nonzero()[:, 0].cpu()
    order = torch.randperm(len(alive), generator=generator)
    return tuple(alive[order[:n]].tolist())
