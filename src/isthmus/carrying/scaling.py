"""Directions of a given norm, random controls of equal norm, and how alike two directions are."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError, NonFiniteError, ShapeError, SiteError
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction


def match_norm(
    direction: Direction, reference_norms: Mapping[Site, Float[Tensor, " position"]]
) -> Direction:
    """Scales every vector to a given norm; means and states stay.

    Refuses another number of positions (`ShapeError`), norms that are not finite (`NonFiniteError`)
    or not above zero (`FitError`).

    Args:
        direction: What to scale; left unchanged.
        reference_norms: Norms above zero per position, in activation units, for each of its sites.

    Returns:
        A direction that points the same way, marked in its provenance. A certificate says how long
        it is now, and that nothing was measured of it.

    Raises:
        SiteError: If a site has no reference.
    """
    by_site = {}
    for site, one in direction.by_site.items():
        if site not in reference_norms:
            raise SiteError(
                f"no reference norm for {site}, only for "
                f"{', '.join(map(str, reference_norms)) or 'no site'}: measure it there too"
            )
        norms = _checked_norms(reference_norms[site].to(one.vectors), site, one.n_positions)
        by_site[site] = replace(one, vectors=one.unit_vectors * norms[:, None])
    provenance = {**direction.provenance, "norm": "matched"}
    return direction.with_vectors(by_site, provenance=provenance)


def random_direction_like(direction: Direction, generator: torch.Generator) -> Direction:
    """Draws a control: uniformly random vectors of the same norm at every site and position.

    Args:
        direction: What to be like; its means and states are kept, itself is left unchanged.
        generator: Source of randomness, on any device.

    Returns:
        A direction with method `random` and no certificate.
    """
    by_site = {}
    for site, one in direction.by_site.items():
        drawn = torch.randn(one.vectors.shape, generator=generator, device=generator.device)
        drawn = drawn.to(one.vectors)
        unit = drawn / drawn.norm(dim=-1, keepdim=True)
        by_site[site] = replace(one, vectors=unit * one.norms[:, None])
    provenance = {**direction.provenance, "like": direction.method}
    # What was certified is the direction's, not a random one's.
    return replace(
        direction, by_site=by_site, method="random", provenance=provenance, certificate=None
    )


def cosine(
    first: Float[Tensor, "*batch d_model"], second: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch"]:
    """Returns the cosine of the angle between vectors, v · w / (|v| |w|).

    Args:
        first: Vectors; left unchanged.
        second: As many vectors.

    Returns:
        Float64 values from -1 to 1.

    Raises:
        FitError: If a vector is zero.
    """
    v, w = first.double(), second.to(first.device).double()
    norms = torch.linalg.vector_norm(v, dim=-1) * torch.linalg.vector_norm(w, dim=-1)
    if bool((norms == 0).any()):
        raise FitError(
            "the cosine with a zero vector is not defined: compare directions that exist"
        )
    cosines: Tensor = (v * w).sum(-1) / norms
    return cosines.clamp(-1, 1)


def _checked_norms(norms: Tensor, site: Site, n_positions: int) -> Tensor:
    if tuple(norms.shape) != (n_positions,):
        raise ShapeError(
            f"{norms.numel()} reference norms for {n_positions} positions at {site}: "
            "measure them on a direction with the same positions"
        )
    if not torch.isfinite(norms).all():
        raise NonFiniteError(f"a reference norm at {site} is NaN or infinite: measure it again")
    if not bool((norms > 0).all()):
        raise FitError(
            f"reference norms at {site} must be above 0, got {norms.tolist()}: "
            "measure them on a direction that is not zero"
        )
    return norms
