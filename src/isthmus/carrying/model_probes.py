"""Probes of models carried through fitted maps, whichever way the maps lead.

1. A map that *leads to* the probe's model is put before the probe: the other model's states go to
   where the probe reads. That is what a probe is for, and decisions survive any such map.
2. A map that *starts* in the probe's model can only take its direction and a point of its boundary
   along, which keeps decisions where the map is orthogonal up to a scale.
3. Provenance and certificate tell the way; that something was measured is not said of a new place.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.directions import passage_through
from isthmus.carrying.probes import pull_back_probe, push_forward_probe, with_positive_share
from isthmus.core.certificate import Certificate, continued
from isthmus.core.errors import ConfigError, IdentityError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import Probe
from isthmus.maps.base import AffineMap
from isthmus.maps.files import FittedMap


def carry_probe(probe: ModelProbe, fitted: FittedMap) -> ModelProbe:
    """Carries a probe to the other model of a map: pulled back where the map leads to it.

    Of a map between sites of one model, one that leads to all sites of the probe pulls it back.

    Args:
        probe: Probe of one of the two models of the map.
        fitted: Affine map that leads to every site of the probe (`pull_back`), or that reads
            exactly the sites of the probe (`push_forward`).

    Returns:
        A probe of the other model, at all sites that the map reads or leads to there, with the same
        positions. Its certificate names the way; nothing counts as measured.

    Raises:
        IdentityError: If the probe belongs to neither model.
        SiteError: If the map has other sites than the probe.
        ConfigError: If the map is not affine.
    """
    if not isinstance(fitted.map, AffineMap):
        raise ConfigError(
            f"a probe stays a probe through affine maps only, this one is {fitted.map.method}: fit "
            "a ridge or procrustes map"
        )
    leads_to = fitted.target.is_same_model(probe.model)
    starts_in = fitted.source.is_same_model(probe.model)
    if leads_to and (not starts_in or set(probe.sites) <= set(fitted.target_sites)):
        moved = pull_back_probe(probe.probe, _to_sites(fitted.map, fitted, probe.sites))
        return _carried(probe, fitted, moved, "pull_back")
    if starts_in:
        moved = push_forward_probe(_in_order_of(probe, fitted.source_sites), fitted.map)
        return _carried(probe, fitted, moved, "push_forward")
    raise IdentityError(
        f"the probe belongs to {probe.model}, the map leads from {fitted.source} to "
        f"{fitted.target}: learn a map from the model in which the probe shall be used to "
        f"{probe.model.name}, at the probe's site {probe.sites_as_written}"
    )


def carry_probe_along(probe: ModelProbe, maps: Sequence[FittedMap]) -> ModelProbe:
    """Carries a probe through several maps one after the other, each whichever way it leads.

    A probe reads all of its sites at once, so that two maps between the same two models do not lead
    it to several sites: the second would bring it back.

    Args:
        probe: Probe of one of the models of the first map.
        maps: In the order of the way.

    Returns:
        The probe in the last model.

    Raises:
        ConfigError: If no map is given, or one leads back to the model before it.
    """
    if not maps:
        raise ConfigError("no map to go through: give at least one")
    before: ModelIdentity | None = None
    for fitted in maps:
        ends = fitted.source, fitted.target
        if before is not None and _are_same(ends, (before, probe.model)):
            raise ConfigError(
                f"a map between {before} and {probe.model} would take the probe back to where it "
                "came from: give one map per model; one map reads several sites (learn-map "
                "--source-sites)"
            )
        carried = carry_probe(probe, fitted)
        if not carried.model.is_same_model(probe.model):
            before = probe.model
        probe = carried
    return probe


def recalibrated(
    probe: ModelProbe,
    unlabelled: Float[Tensor, "prompt width"],
    share: float,
    told: dict[str, object],
) -> ModelProbe:
    """Moves the threshold so that a share of unlabelled prompts lies above it.

    Args:
        probe: Probe of the model whose states are given.
        unlabelled: One state per prompt, as the probe reads it.
        share: Share of positive ones, from 0 to 1.
        told: What its provenance should say of the prompts besides their number, the share and
            the share that does lie above, which is smaller where scores are equal.

    Returns:
        The same probe with another threshold; nothing that was measured of the old one.
    """
    moved = with_positive_share(probe.probe, unlabelled, share)
    above = float((moved.scores(unlabelled) > 0).double().mean())
    told = {
        "positive_share": share,
        "share_above": above,
        "n_unlabelled": len(unlabelled),
        **told,
    }
    provenance = {**probe.provenance, "recalibrated": told}
    return replace(probe, probe=moved, held_out={}, provenance=provenance)


def _are_same(
    some: tuple[ModelIdentity, ModelIdentity], others: tuple[ModelIdentity, ModelIdentity]
) -> bool:
    """Says whether two pairs are the same two models, in either order."""
    return any(
        all(one.is_same_model(other) for one, other in zip(some, ordered, strict=True))
        for ordered in (others, others[::-1])
    )


def _to_sites(activation_map: AffineMap, fitted: FittedMap, sites: tuple[Site, ...]) -> AffineMap:
    """Cuts from a map what leads to some of its target sites, in their order."""
    if missing := [str(site) for site in sites if site not in fitted.target_sites]:
        raise SiteError(
            f"the map leads to {', '.join(map(str, fitted.target_sites))}, the probe reads "
            f"{', '.join(missing)}: learn a map with --target-site {','.join(map(str, sites))}"
        )
    width = fitted.target.d_model
    parts = [torch.arange(width) + width * fitted.target_sites.index(site) for site in sites]
    columns = torch.cat(parts)
    return replace(
        activation_map,
        weight=activation_map.weight[:, columns],
        target_mean=activation_map.target_mean[columns],
    )


def _in_order_of(probe: ModelProbe, sites: tuple[Site, ...]) -> Probe:
    """Returns the probe over the same sites in another order."""
    if set(sites) != set(probe.sites):
        raise SiteError(
            f"the map reads {', '.join(map(str, sites))}, the probe {probe.sites_as_written}: "
            "learn the probe at the sites of the map, or learn a map that leads to the probe's "
            "model, through which it is pulled back"
        )
    parts = dict(zip(probe.sites, probe.probe.unit_direction.chunk(len(sites)), strict=True))
    return replace(probe.probe, unit_direction=torch.cat([parts[site] for site in sites]))


def _carried(probe: ModelProbe, fitted: FittedMap, moved: Probe, rule: str) -> ModelProbe:
    pulled = rule == "pull_back"
    model: ModelIdentity = fitted.source if pulled else fitted.target
    sites = fitted.source_sites if pulled else fitted.target_sites
    passage = passage_through(fitted)
    certificate = Certificate(
        source=probe.model,
        target=model,
        source_sites=tuple(str(site) for site in probe.sites),
        target_site=", ".join(map(str, sites)),
        map_method=passage.map_method,
        map_quality=passage.map_quality,
        corpus=passage.corpus,
        seed=passage.seed,
        way=(passage,),
    )
    return ModelProbe(
        probe=moved,
        sites=sites,
        positions=probe.positions,
        model=model,
        provenance={
            "rule": rule,
            "map_method": passage.map_method,
            "map_quality": dict(passage.map_quality),
            "source_model": probe.model.to_json(),
            "source_sites": [str(site) for site in probe.sites],
            "source_provenance": probe.provenance,
        },
        certificate=continued(probe.certificate, certificate),
    )
