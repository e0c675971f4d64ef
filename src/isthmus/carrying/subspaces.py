"""Subspaces carried from the source model to the target model, and random ones to compare with.

1. States go through the whole map, and the mean of a class becomes the mean of its images, as with
   a direction. So the coordinates of the classes along the basis are new ones in the target.
2. The basis goes through the linear part of an affine map, Q W; a QR decomposition makes the rows
   orthonormal again. It keeps their order, so that what rank k spans, a higher rank spans, too.
3. Of a map that reads several sites, Q is the basis of the states of all sites side by side.
4. Through any other map there is no linear part: the basis is learned anew from the images.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.directions import (
    TransferRule,
    carried_certificate,
    carried_classes,
    carried_provenance,
    resolved_rule,
    side_by_side,
)
from isthmus.core.errors import ConfigError, FitError
from isthmus.core.identity import require_same_model
from isthmus.core.sites import Site
from isthmus.directions.subspace import (
    TOLERANCE,
    SiteSubspace,
    Subspace,
    learn_site_subspace,
)
from isthmus.maps.base import AffineMap
from isthmus.maps.files import FittedMap


def carry_subspace(subspace: Subspace, fitted: FittedMap, rule: TransferRule = "auto") -> Subspace:
    """Carries a subspace of the source model into the activation space of the target model.

    `linear`: the span of Q becomes that of Q W. `difference`: the subspace of the same rank that is
    learned from the images of the states. `auto` is `linear` for affine maps and `difference` for
    all others. At rank 1 both agree with what `carry_direction` does to the pooled mean difference.

    Refuses a subspace of another model than the map's source (`IdentityError`) and one that was not
    learned at all of the map's sites (`SiteError`).

    Args:
        subspace: Subspace of `fitted.source`, learned at every site in `fitted.source_sites`.
        fitted: Map into the target model.
        rule: How the basis travels.

    Returns:
        Subspace of `fitted.target` at the map's target sites, of the same rank, positions and
        pooling. Its provenance tells rule, map, quality, origin and the shares of the contrast in
        the target; its certificate, every map since it was learned, and that nothing was measured.

    Raises:
        ConfigError: If there is no such rule, it is `map_of_vector`, or `linear` is asked of a map
            that is not affine.
        FitError: If fewer dimensions arrive than were sent.
    """
    require_same_model(
        "subspace",
        subspace.model,
        fitted.source,
        "learn the subspace on the map's source model, or a map from the subspace's model",
    )
    used = resolved_rule(rule, fitted.map)
    if used == "map_of_vector":
        raise ConfigError(
            "rule 'map_of_vector' of a subspace: a basis has no point of its own, use 'auto', "
            "'linear' or 'difference'"
        )
    joined = side_by_side(subspace, fitted.source_sites)
    classes = carried_classes(joined, fitted.map)
    rows = None
    if used == "linear" and isinstance(fitted.map, AffineMap):
        rows = fitted.map.linear(_basis_of_all(subspace, joined, fitted.source_sites).double())
    by_site = _by_site(classes, rows, fitted, subspace)
    shares = {str(site): one.shares_as_written for site, one in by_site.items()}
    return Subspace(
        by_site=by_site,
        model=fitted.target,
        method=subspace.method,
        positions=subspace.positions,
        pooled=subspace.pooled,
        provenance={**carried_provenance(subspace, fitted, used), "shares": shares},
        certificate=carried_certificate(subspace, fitted, by_site),
    )


def random_subspace_like(subspace: Subspace, generator: torch.Generator) -> Subspace:
    """Draws a control: uniformly random subspaces of the same rank at every site.

    The means are moved so that setting coordinates moves a state as far as it does in the subspace
    itself: c₋ = μ₊ Rᵀ + (μ₋ - μ₊) Qᵀ for the random basis R, and c₊ likewise.

    Args:
        subspace: What to be like; its states are kept, itself is left unchanged.
        generator: Source of randomness, on any device.

    Returns:
        A subspace with method `random` and no certificate.
    """
    by_site: dict[Site, SiteSubspace] = {}
    for site, one in subspace.by_site.items():
        drawn = torch.randn(one.basis.shape, generator=generator, device=generator.device)
        basis = orthonormal_rows(drawn.double()).to(one.basis)
        gap = (one.positive_coordinates - one.negative_coordinates) @ basis
        by_site[site] = replace(
            one,
            basis=basis,
            positive_mean=one.negative_mean + gap,
            negative_mean=one.positive_mean - gap,
        )
    provenance = {**subspace.provenance, "like": subspace.method}
    # What was certified is the subspace's, not a random one's.
    return replace(
        subspace, by_site=by_site, method="random", provenance=provenance, certificate=None
    )


def orthonormal_rows(rows: Float[Tensor, "rank d_model"]) -> Float[Tensor, "rank d_model"]:
    """Returns an orthonormal basis of what rows span, by a QR decomposition.

    The first i rows span what the first i given rows span, and each points to its row's side.

    Args:
        rows: As many as the basis is to have; left unchanged.

    Returns:
        Orthonormal rows in float64.

    Raises:
        FitError: If they span fewer dimensions than there are rows.
    """
    across, triangle = torch.linalg.qr(rows.double().mT)
    left = triangle.diagonal()
    largest = torch.linalg.vector_norm(rows.double(), dim=-1).max()
    n_new = int((left.abs() > TOLERANCE * largest).cumprod(0).sum())
    if n_new < len(rows):
        raise FitError(
            f"of {len(rows)} basis vectors number {n_new + 1} adds nothing to those before it in "
            f"width {rows.shape[1]}: take a subspace of lower rank, or a map that keeps more"
        )
    basis: Tensor = (across * left.sign()).mT
    return basis


def _basis_of_all(
    subspace: Subspace, joined: Mapping[str, Tensor], sites: tuple[Site, ...]
) -> Float[Tensor, "rank d_source"]:
    """Returns the basis at the one site of a map, or that of its sites side by side."""
    if len(sites) == 1:
        return subspace.at(sites[0]).basis
    return _learned(joined, subspace).basis


def _learned(classes: Mapping[str, Tensor], subspace: Subspace) -> SiteSubspace:
    states = classes["positive_states"], classes["negative_states"]
    return learn_site_subspace(*states, subspace.rank, pooled=subspace.pooled)


def _by_site(
    classes: Mapping[str, Tensor],
    rows: Float[Tensor, "rank d_target"] | None,
    fitted: FittedMap,
    subspace: Subspace,
) -> dict[Site, SiteSubspace]:
    """Cuts what a map returned into its target sites and gives each an orthonormal basis."""
    n_sites = len(fitted.target_sites)
    pieces = {name: value.chunk(n_sites, dim=-1) for name, value in classes.items()}
    bases = [None] * n_sites if rows is None else rows.chunk(n_sites, dim=-1)
    by_site: dict[Site, SiteSubspace] = {}
    for i, (site, part) in enumerate(zip(fitted.target_sites, bases, strict=True)):
        here = {name: parts[i] for name, parts in pieces.items()}
        basis = _learned(here, subspace).basis if part is None else orthonormal_rows(part).float()
        by_site[site] = SiteSubspace(basis=basis, **here)
    return by_site
