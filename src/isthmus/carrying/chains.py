"""Directions that travel further: through several models, to several sites, from several sources.

1. A step carries a direction into the next model through one map, or through several that lead to
   several of its sites; the next map may then read all of these.
2. Directions of several sources that arrived at the same place are averaged there.
3. Whatever the way, provenance and certificate tell all of it: every map with its held-out quality.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.directions import TransferRule, carry_direction
from isthmus.carrying.subspaces import carry_subspace
from isthmus.core.certificate import Certificate, Passage, corpus_of, worst_quality
from isthmus.core.errors import ConfigError, FitError, SiteError
from isthmus.core.identity import require_same_model
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction, SiteDirection
from isthmus.directions.learned import Learned, LearnedBySite, SiteClasses
from isthmus.directions.subspace import Subspace
from isthmus.maps.files import FittedMap

_CARRIERS: Mapping[type, Callable[..., Any]] = MappingProxyType(
    {Direction: carry_direction, Subspace: carry_subspace}
)
_OPPOSED = 1e-6
"""Length of a mean of unit vectors below which nothing but rounding is left of it."""


def at_several_sites(directions: Sequence[Learned]) -> Learned:
    """Joins directions of one model at different sites into one direction at all of these sites.

    Subspaces of one model are joined likewise. So what several maps carried into a model can be
    used at several layers at once, or go on through a map that reads several sites. Vectors, means
    and states stay as they are.

    Refuses another model (`IdentityError`), a repeated site (`SiteError`) and other prompts
    (`ShapeError`).

    Args:
        directions: At least one, all of one model, read at the same positions over the same
            prompts; all of them carried, or none.

    Returns:
        Their sites in the order given. A certificate is about all of them: its quality is that of
        the map that predicts worst.

    Raises:
        ConfigError: If there are none, they were read at other positions, or a certificate would be
            about some of them only.
    """
    _require_alike(directions, "join")
    first = directions[0]
    by_site: dict[Site, Any] = {}
    for one in directions:
        if repeated := [str(site) for site in one.sites if site in by_site]:
            raise SiteError(
                f"two {one.WHAT}s at {', '.join(repeated)}: give one per site, or average them"
            )
        by_site |= one.by_site
    if len(directions) == 1:
        return first
    return replace(
        first,
        by_site=by_site,
        provenance={"joined": [one.provenance for one in directions]},
        certificate=_joint_certificate(directions, by_site),
    )


def carry_along(
    direction: Learned,
    steps: Sequence[FittedMap | Sequence[FittedMap]],
    rule: TransferRule = "auto",
) -> Learned:
    """Carries a direction, or a subspace, through one model after another.

    Through affine maps it arrives as v · W₁ · W₂ …, the product of their linear parts; a step of
    several maps takes it to several sites, whose vectors the next map reads side by side.

    Refuses, before anything is carried, a map that does not start where the step before it ended
    (`IdentityError`), one that reads a site which the step before it does not reach (`SiteError`)
    and a repeated target site (`SiteError`).

    Args:
        direction: Of the first maps' source model, at every site that these read.
        steps: Maps in the order of the way: one per model that is entered, or several that lead to
            different sites of it.
        rule: How vectors go through each map, as `carry_direction` knows it.

    Returns:
        The direction, or subspace, in the last model. Its certificate names where it was learned,
        where it is, and every map between; its quality is that of the map that predicts worst.

    Raises:
        ConfigError: If there is no step, or a step without a map.
    """
    way = [(step,) if isinstance(step, FittedMap) else tuple(step) for step in steps]
    _require_way(way)
    carried = direction
    for step in way:
        carried = at_several_sites([_through(carried, fitted, rule) for fitted in step])
    return carried


def _through(learned: Learned, fitted: FittedMap, rule: TransferRule) -> Learned:
    carried: Learned = _CARRIERS[type(learned)](learned, fitted, rule)
    return carried


def steps_of(maps: Sequence[FittedMap]) -> tuple[tuple[FittedMap, ...], ...]:
    """Sorts maps in order into steps: neighbours from one model to the same other are one step.

    Args:
        maps: In the order of the way.

    Returns:
        What `carry_along` takes.
    """
    ends = groupby(maps, key=lambda one: (one.source.weights_sha256, one.target.weights_sha256))
    return tuple(tuple(group) for _, group in ends)


def average_directions(directions: Sequence[Direction]) -> Direction:
    """Averages directions that several sources sent to the same sites of one model.

    Per site and position u = (1/n) Σ vᵢ / |vᵢ|, v = (u / |u|) · (1/n) Σ |vᵢ|: every source has one
    vote on where to point whatever its length, and the length is their mean, so that a strength
    means what it meant for each of them. |u| is 1 when all agree and tells how far they do;
    provenance keeps it as `agreement`. Errors of n sources that have nothing to do with each other
    shrink as 1/√n; an error that all share stays.

    A mean of a class becomes the mean of the sources' means, each counting once; the states of a
    class are those of all sources one below the other, so that twins stay twins.

    Refuses directions of other models (`IdentityError`).

    Args:
        directions: At least one, of one model, at the same sites and positions; all of them
            carried, or none.

    Returns:
        A direction at these sites. Its certificate names the first source and, in its way, all of
        them.

    Raises:
        ConfigError: If there are none, they were read at other positions, or a certificate would be
            about some of them only.
        SiteError: If their sites differ.
        FitError: If they cancel out.
    """
    _require_alike(directions, "average")
    first = directions[0]
    for one in directions:
        if set(one.sites) != set(first.sites):
            raise SiteError(
                f"directions at {', '.join(map(str, first.sites))} and at "
                f"{', '.join(map(str, one.sites))}: carry all of them to the same sites"
            )
        if one.n_positions != first.n_positions:
            raise ConfigError(
                f"directions with {first.n_positions} and {one.n_positions} positions: "
                "learn all of them at the same tokens"
            )
    if len(directions) == 1:
        return first
    by_site: dict[Site, SiteDirection] = {}
    agreement: dict[str, list[float]] = {}
    for site in first.sites:
        by_site[site], agree = _average([one.at(site) for one in directions], site)
        agreement[str(site)] = agree.tolist()
    return replace(
        first,
        by_site=by_site,
        provenance={
            "averaged": [one.provenance for one in directions],
            "agreement": agreement,
        },
        certificate=_joint_certificate(directions, by_site),
    )


def _average(parts: Sequence[SiteDirection], site: Site) -> tuple[SiteDirection, Tensor]:
    mean: Float[Tensor, "position d_model"] = torch.stack(
        [one.vectors.double() / one.norms.double()[:, None] for one in parts]
    ).mean(0)
    agreement = torch.linalg.vector_norm(mean, dim=-1)
    if bool((agreement < _OPPOSED).any()):
        raise FitError(
            f"the directions at {site} cancel out, pointing opposite ways: check that all were "
            "learned from the same class to the same other"
        )
    norms = torch.stack([one.norms.double() for one in parts]).mean(0)

    def means(name: str) -> Tensor:
        return torch.stack([one.tensors[name].double() for one in parts]).mean(0).float()

    def states(name: str) -> Tensor:
        return torch.cat([one.tensors[name] for one in parts])

    averaged = SiteDirection(
        vectors=(mean / agreement[:, None] * norms[:, None]).float(),
        positive_mean=means("positive_mean"),
        negative_mean=means("negative_mean"),
        positive_states=states("positive_states"),
        negative_states=states("negative_states"),
    )
    return averaged, agreement


def _joint_certificate(
    directions: Sequence[LearnedBySite[Any]], by_site: Mapping[Site, SiteClasses]
) -> Certificate | None:
    held = [one.certificate for one in directions if one.certificate is not None]
    if not held:
        return None
    first = held[0]
    way: list[Passage] = []
    for one in held:
        way += [passage for passage in one.way if passage not in way]
    return Certificate(
        source=first.source,
        target=first.target,
        source_sites=tuple(dict.fromkeys(s for one in held for s in one.source_sites)),
        target_site=", ".join(map(str, by_site)),
        map_method=", ".join(dict.fromkeys(one.map_method for one in held)),
        map_quality=worst_quality(one.map_quality for one in held),
        corpus=corpus_of(way),
        seed=first.seed,
        norms={"vectors": torch.cat([one.norms for one in by_site.values()]).tolist()},
        way=tuple(way),
    )


def _require_alike(directions: Sequence[LearnedBySite[Any]], what: str) -> None:
    if not directions:
        raise ConfigError(f"no direction to {what}: give at least one")
    first = directions[0]
    for one in directions[1:]:
        require_same_model(one.WHAT, one.model, first.model, f"{what} {one.WHAT}s of one model")
        if (one.positions, one.pooled) != (first.positions, first.pooled):
            raise ConfigError(
                f"{one.WHAT}s read at {first.positions} (pooled: {first.pooled}) and at "
                f"{one.positions} (pooled: {one.pooled}): learn all of them at the same tokens"
            )
        if (one.certificate is None) != (first.certificate is None):
            raise ConfigError(
                f"one {one.WHAT} was carried and another learned in {first.model}: {what} carried "
                "ones, or learned ones, so that the certificate is about all of it"
            )


def _require_way(way: Sequence[tuple[FittedMap, ...]]) -> None:
    if not way or not all(way):
        raise ConfigError("no map to go through: give at least one for every step")
    for step in way:
        reached = [str(site) for fitted in step for site in fitted.target_sites]
        if len(set(reached)) < len(reached):
            raise SiteError(f"a step leads to {', '.join(reached)}: give one map per site")
    for before, after in pairwise(way):
        reached_sites = {site for fitted in before for site in fitted.target_sites}
        for fitted in after:
            require_same_model(
                "map", fitted.source, before[0].target, "give the maps in the order of the way"
            )
            if missing := [str(s) for s in fitted.source_sites if s not in reached_sites]:
                raise SiteError(
                    f"the map into {fitted.target} reads {', '.join(missing)}, which no map of the "
                    f"step before leads to: fit maps to these sites of {fitted.source} too"
                )
