"""Subspaces: a basis at one site, a subspace of a model, and how one is learned from pairs.

1. The first basis vector is the mean of the paired differences h₊ - h₋, of norm 1.
2. The others are the right singular vectors of what is left of the differences beside it, the
   largest first. So rank 1 is the mean difference, and a higher rank holds every lower one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from isthmus.core.errors import ConfigError, DataError, FitError, NonFiniteError, ShapeError
from isthmus.directions.classes import checked_classes
from isthmus.directions.direction import Direction
from isthmus.directions.learned import LearnedBySite, SiteClasses

METHOD = "mean_difference_and_pca"
"""How the method of a learned subspace is called."""

TOLERANCE = 1e-6
"""Share of the largest length below which nothing but rounding is left of a vector."""

_ORTHONORMAL = 1e-4


def require_orthonormal(name: str, basis: Tensor) -> None:
    """Refuses anything but finite floating-point rows of norm 1 at right angles to each other.

    Args:
        name: What the rows are, for the message.
        basis: What was given.

    Raises:
        ShapeError: If it is not such a basis.
        NonFiniteError: If it holds NaN or infinity.
    """
    if basis.ndim != 2 or not basis.numel() or not basis.is_floating_point():
        raise ShapeError(
            f"{name} has shape {list(basis.shape)} and type {basis.dtype}: expected "
            "floating-point rows [rank d_model]"
        )
    if not bool(torch.isfinite(basis).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity: compute it again from finite values")
    rows = basis.double()
    apart = (rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).abs()
    if float(apart.max()) > _ORTHONORMAL:
        raise ShapeError(
            f"{name} is not orthonormal, Q Qᵀ differs from 1 by {float(apart.max()):.2g}: make its "
            "rows orthonormal first, such as by a QR decomposition"
        )


def require_rank(rank: int) -> None:
    """Refuses a rank below 1 (`ConfigError`)."""
    if rank < 1:
        raise ConfigError(f"a subspace of rank {rank}: give a rank of at least 1")


@dataclass(frozen=True, eq=False)
class SiteSubspace(SiteClasses):
    """Directions in which the twins of two classes differ at one site, with the states.

    Attributes:
        WHAT: How messages call it.
        basis: Q, orthonormal rows; one basis for all positions.

    Raises:
        ShapeError: If the basis is not orthonormal or has another width than the states.
        DataError: If the classes have different numbers of prompts.
    """

    WHAT: ClassVar[str] = "subspace"

    basis: Float[Tensor, "rank d_model"]

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        require_orthonormal("the basis of a subspace", self.basis)
        if self.basis.shape[1] != self.d_model:
            raise ShapeError(
                f"a basis of width {self.basis.shape[1]} with states of width {self.d_model}: "
                "read both at the same site"
            )
        _require_pairs(self.positive_states, self.negative_states)

    @property
    @override
    def _by_position(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.tensors.items() if name != "basis"}

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return self.basis.shape[0]

    @property
    def positive_coordinates(self) -> Float[Tensor, "position rank"]:
        """Coordinates of the positive class's mean along the basis, μ₊ Qᵀ, in activation units."""
        return self.positive_mean @ self.basis.mT

    @property
    def negative_coordinates(self) -> Float[Tensor, "position rank"]:
        """Coordinates of the negative class's mean along the basis, μ₋ Qᵀ, in activation units."""
        return self.negative_mean @ self.basis.mT

    @property
    def vectors(self) -> Float[Tensor, "position d_model"]:
        """What of the difference of the class means lies in the subspace, (μ₊ - μ₋) Qᵀ Q."""
        return (self.positive_coordinates - self.negative_coordinates) @ self.basis

    @property
    @override
    def norms(self) -> Float[Tensor, " position"]:
        """Distance of the class means within the subspace, in activation units."""
        norms: Tensor = torch.linalg.vector_norm(self.vectors, dim=-1)
        return norms

    @property
    def shares(self) -> Float[Tensor, " rank"]:
        """Share of the contrast along each basis vector, Σ (dₙ·q)² / Σ |dₙ|² over all pairs."""
        differences = (self.positive_states.double() - self.negative_states.double()).flatten(0, 1)
        along: Tensor = (differences @ self.basis.double().mT).square().sum(0)
        return along / differences.square().sum()

    @property
    def shares_as_written(self) -> list[float]:
        """The shares as provenance keeps them."""
        return [round(share, 6) for share in self.shares.tolist()]


@dataclass(frozen=True, eq=False)
class Subspace(LearnedBySite[SiteSubspace]):
    """A subspace of a model: at one or more sites, of one rank at all of them.

    Attributes:
        WHAT: How messages call it.

    Raises:
        ShapeError: If sites differ in rank.
    """

    WHAT: ClassVar[str] = "subspace"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        ranks = {str(site): one.rank for site, one in self.by_site.items()}
        if len(set(ranks.values())) > 1:
            raise ShapeError(f"sites differ in rank: {ranks}: learn one rank at all of them")

    @property
    def rank(self) -> int:
        """How many dimensions it has at every site."""
        return next(iter(self.by_site.values())).rank


def learn_site_subspace(
    positive: Float[Tensor, "positive_prompt position d_model"],
    negative: Float[Tensor, "negative_prompt position d_model"],
    rank: int,
    *,
    pooled: bool,
) -> SiteSubspace:
    """Learns the subspace of one site from paired states of both classes.

    q₁ = d̄ / |d̄| for the mean d̄ of all differences d = h₊ - h₋; q₂, q₃ … are the first right
    singular vectors of d - (d·q₁) q₁. For rank 1 that is the pooled mean difference. Uncentred
    principal components alone would not hold the mean difference, and centred ones would lose it.

    Refuses empty classes (`DataError`), unequal positions or widths (`ShapeError`) and states that
    are not finite (`NonFiniteError`).

    Source: Bolukbasi et al. 2016, arXiv 1607.06520, §5.1, for subspaces of paired differences.

    Args:
        positive: States that show the behaviour; left unchanged.
        negative: States that do not, row by row their twins.
        rank: How many dimensions, at least 1.
        pooled: Whether the means of all positions are one; the basis is one in any case.

    Returns:
        Float32 basis, means and states on the CPU.

    Raises:
        ConfigError: If the rank is below 1.
        DataError: If the classes have different numbers of prompts.
        FitError: If the classes have one mean, or the differences span fewer dimensions.
    """
    require_rank(rank)
    classes = checked_classes(positive, negative, pooled=pooled)
    _require_pairs(positive, negative)
    basis = _basis_of((classes.positive - classes.negative).flatten(0, 1), rank)
    return SiteSubspace(basis=basis.float().cpu(), **classes.kept)


def subspace_of(direction: Direction, rank: int) -> Subspace:
    """Learns a subspace from the states that a direction keeps, at every site of it.

    Args:
        direction: Learned from pairs, by any method; left unchanged.
        rank: How many dimensions, at least 1.

    Returns:
        A subspace of the same model, positions and pooling, with no certificate.

    Raises:
        ConfigError: If the rank is below 1.
        DataError: If the direction was not learned from pairs.
        FitError: If the differences at a site span fewer dimensions.
    """
    by_site = {
        site: learn_site_subspace(
            one.positive_states, one.negative_states, rank, pooled=direction.pooled
        )
        for site, one in direction.by_site.items()
    }
    place = direction.model, METHOD, direction.positions, direction.pooled
    return Subspace(by_site, *place, direction.provenance)


def _basis_of(differences: Float[Tensor, "pair d_model"], rank: int) -> Float[Tensor, "rank d"]:
    mean = differences.mean(0)
    largest = torch.linalg.vector_norm(differences)
    # As many differences as there are add up to their mean.
    if not bool(mean.norm() * len(differences) ** 0.5 > TOLERANCE * largest):
        raise FitError(
            "the twins of both classes do not differ on average, so that there is no mean "
            "difference: choose other prompts, positions or a later layer"
        )
    first = mean / mean.norm()
    rest = differences - (differences @ first)[:, None] * first
    _, sizes, principal = torch.linalg.svd(rest, full_matrices=False)
    n_spanned = 1 + int((sizes > TOLERANCE * largest).sum())
    if rank > n_spanned:
        raise FitError(
            f"a subspace of rank {rank} from {len(differences)} differences of width "
            f"{len(first)} that span {n_spanned} dimensions: ask for rank {n_spanned} at most, or "
            "give more prompts"
        )
    return torch.cat([first[None], principal[: rank - 1]])


def _require_pairs(positive: Tensor, negative: Tensor) -> None:
    if len(positive) != len(negative):
        raise DataError(
            f"a subspace needs pairs, got {len(positive)} positive and {len(negative)} negative "
            "prompts: give as many of both, twin by twin, or learn a direction"
        )
