"""Synthetic pairs of activations for the tests of maps."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
import torch
from torch import Tensor

from isthmus.core.identity import ModelIdentity
from isthmus.maps import PairMoments


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """Lets a wrong shape reach the package's own refusals, as it does outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", value=True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", value=False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def independent_noise(n: int, d_source: int, d_target: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    x = torch.randn(n, d_source, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, d_target, generator=generator, dtype=torch.float64)


def linear_pairs(
    n: int, weight: Tensor, noise: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Pairs y = (x - 3) W - 2 + noise, far from the origin on both sides."""
    generator = seeded(seed)
    x = torch.randn(n, weight.shape[0], generator=generator, dtype=torch.float64)
    error = torch.randn(n, weight.shape[1], generator=generator, dtype=torch.float64)
    return x + 3, x @ weight - 2 + noise * error


def random_weight(d_source: int, d_target: int, seed: int = 0) -> Tensor:
    return torch.randn(d_source, d_target, generator=seeded(seed), dtype=torch.float64)


def moments_of(x: Tensor, y: Tensor) -> PairMoments:
    moments = PairMoments(x.shape[1], y.shape[1])
    moments.update(x, y)
    return moments


def identity_of(name: str, d_model: int, n_layers: int = 4) -> ModelIdentity:
    return ModelIdentity(name, f"weights-{name}", "tokenizer", d_model, n_layers)
