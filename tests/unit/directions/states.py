"""Synthetic states of two classes for the tests of directions."""

import torch
from torch import Tensor

from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site
from isthmus.directions import (
    Direction,
    Subspace,
    learn_site_direction,
    learn_site_subspace,
)


def identity_of(name: str, d_model: int, n_layers: int = 4) -> ModelIdentity:
    return ModelIdentity(name, f"weights-{name}", "tokenizer", d_model, n_layers)


def two_classes(
    n: int = 60, n_positions: int = 2, d_model: int = 5, gap: float = 4.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Positive states, their negative twins, and the unit direction that separates them."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(d_model, generator=generator), dim=0)
    common = 10 + torch.randn(n, n_positions, d_model, generator=generator)
    noise = 0.3 * torch.randn(n, n_positions, d_model, generator=generator)
    return common + gap * unit + noise, common, unit


def a_direction(
    *sites: Site,
    method: str = "mean_difference",
    pooled: bool = False,
    d_model: int = 5,
    name: str = "small",
) -> Direction:
    by_site = {}
    for index, site in enumerate(sites):
        positive, negative, _ = two_classes(n=12, d_model=d_model, seed=index)
        by_site[site] = learn_site_direction(method, positive, negative, pooled=pooled)
    model = identity_of(name, d_model)
    return Direction(by_site, model, method, "last:2", pooled, {"seed": 0})


def a_subspace(
    *sites: Site, rank: int = 2, pooled: bool = False, d_model: int = 5, name: str = "small"
) -> Subspace:
    by_site = {}
    for index, site in enumerate(sites):
        positive, negative, _ = two_classes(n=12, d_model=d_model, seed=index)
        by_site[site] = learn_site_subspace(positive, negative, rank, pooled=pooled)
    model = identity_of(name, d_model)
    return Subspace(by_site, model, "mean_difference_and_pca", "last:2", pooled, {"seed": 0})
