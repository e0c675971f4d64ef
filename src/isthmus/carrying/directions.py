"""Directions carried from the source model to the target model through a map.

1. The states, means and vectors of all source sites of the map are concatenated in its order.
2. States are points: they go through the whole map. The mean of a class becomes the mean of its
   states' images, which through an affine map is the image of the mean.
3. Vectors go through the linear part of an affine map; through any other map a direction goes as
   the mean of f(h₊) - f(h₋) over the stored states.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.certificate import Certificate, Passage, continued
from isthmus.core.errors import ConfigError, SiteError
from isthmus.core.identity import require_same_model
from isthmus.core.options import require_word
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction, SiteDirection
from isthmus.directions.learned import LearnedBySite, SiteClasses
from isthmus.maps.base import ActivationMap, AffineMap
from isthmus.maps.files import FittedMap

TransferRule = Literal["auto", "linear", "difference", "map_of_vector"]

_CORPUS = {"n_texts": "n_texts", "sha256": "texts_sha256", "pairing": "pairing"}
"""Names in a certificate's corpus, and where a map's provenance has them."""


def carry_direction(
    direction: Direction, fitted: FittedMap, rule: TransferRule = "auto"
) -> Direction:
    """Carries a direction of the source model into the activation space of the target model.

    `linear`: v ↦ v · W. `difference`: v ↦ mean f(h₊) - mean f(h₋) per position, which is the image
    of the difference of means whatever the direction's own method was. `map_of_vector`: v ↦ f(v),
    which treats a difference as a point; only to reproduce what others do. `auto` is `linear` for
    affine maps and `difference` for all others.

    Refuses a direction of another model than the map's source (`IdentityError`), one that was not
    learned at all of the map's sites (`SiteError`) and one whose image is zero (`FitError`).

    Args:
        direction: Direction of `fitted.source`, learned at every site in `fitted.source_sites`.
        fitted: Map into the target model.
        rule: How the vectors travel; states always go through the whole map, and a mean becomes
            that of the images.

    Returns:
        Direction of `fitted.target` at the map's target sites, with the same method, positions and
        pooling. Its provenance tells rule, map, quality and origin; its certificate, every map
        since it was learned, and that nothing was measured yet.

    Raises:
        ConfigError: If there is no such rule, or `linear` is asked of a map that is not affine.
    """
    require_same_model(
        "direction",
        direction.model,
        fitted.source,
        "learn the direction on the map's source model, or a map from the direction's model",
    )
    used = resolved_rule(rule, fitted.map)
    carried = _carried(side_by_side(direction, fitted.source_sites), fitted.map, used)
    by_site = _by_site(carried, fitted)
    return Direction(
        by_site=by_site,
        model=fitted.target,
        method=direction.method,
        positions=direction.positions,
        pooled=direction.pooled,
        provenance=carried_provenance(direction, fitted, used),
        certificate=carried_certificate(direction, fitted, by_site),
    )


def carried_provenance(
    learned: LearnedBySite[Any], fitted: FittedMap, rule: TransferRule
) -> dict[str, Any]:
    """Returns what a carried direction or subspace tells of its way.

    Args:
        learned: What was carried.
        fitted: Through which map.
        rule: By which rule.

    Returns:
        JSON values.
    """
    return {
        "rule": rule,
        "map_method": fitted.map.method,
        "map_quality": fitted.quality.to_json(),
        "source_model": learned.model.to_json(),
        "source_sites": [str(site) for site in fitted.source_sites],
        "source_provenance": learned.provenance,
    }


def _by_site(carried: SiteDirection, fitted: FittedMap) -> dict[Site, SiteDirection]:
    """Cuts what a map returned into the parts of its target sites."""
    n_sites = len(fitted.target_sites)
    pieces = {name: value.chunk(n_sites, dim=-1) for name, value in carried.tensors.items()}
    return {
        site: SiteDirection(**{name: parts[i] for name, parts in pieces.items()})
        for i, site in enumerate(fitted.target_sites)
    }


def passage_through(fitted: FittedMap) -> Passage:
    """Returns what the certificate of something that a map carried says of that map."""
    told = fitted.provenance
    return Passage(
        source=fitted.source,
        target=fitted.target,
        source_sites=tuple(str(site) for site in fitted.source_sites),
        target_site=", ".join(map(str, fitted.target_sites)),
        map_method=fitted.map.method,
        map_quality=fitted.quality.to_json(),
        corpus={name: told[key] for name, key in _CORPUS.items() if key in told},
        seed=told.get("seed"),
    )


def carried_certificate(
    learned: LearnedBySite[Any], fitted: FittedMap, by_site: Mapping[Site, SiteClasses]
) -> Certificate:
    """Returns what is known of a direction or subspace that went through a map.

    Args:
        learned: What was carried; every map that it came through before stays in the way.
        fitted: Through which map.
        by_site: What arrived.

    Returns:
        A certificate that counts nothing as measured.
    """
    passage = passage_through(fitted)
    certificate = Certificate(
        source=passage.source,
        target=passage.target,
        source_sites=passage.source_sites,
        target_site=passage.target_site,
        map_method=passage.map_method,
        map_quality=passage.map_quality,
        corpus=passage.corpus,
        seed=passage.seed,
        norms={"vectors": torch.cat([one.norms for one in by_site.values()]).tolist()},
        way=(passage,),
    )
    return continued(learned.certificate, certificate)


def resolved_rule(rule: TransferRule, activation_map: ActivationMap) -> TransferRule:
    """Returns the rule that `auto` stands for with a map, or the rule that was given.

    Args:
        rule: As asked for.
        activation_map: The map.

    Returns:
        A rule other than `auto`.

    Raises:
        ConfigError: If there is no such rule, or the map has no linear part for `linear`.
    """
    require_word("rule", rule, get_args(TransferRule))
    if rule == "auto":
        return "linear" if isinstance(activation_map, AffineMap) else "difference"
    if rule == "linear" and not isinstance(activation_map, AffineMap):
        raise ConfigError(
            f"the {activation_map.method} map has no linear part: use rule 'difference' or 'auto'"
        )
    return rule


def side_by_side(learned: LearnedBySite[Any], sites: tuple[Site, ...]) -> dict[str, Tensor]:
    """Returns the tensors of all sites that a map reads, concatenated as it reads them.

    Args:
        learned: A direction or a subspace.
        sites: What the map reads.

    Returns:
        Tensors by the name of their attribute.

    Raises:
        SiteError: If one of the sites is missing.
    """
    missing = [site for site in sites if site not in learned.by_site]
    if missing:
        raise SiteError(
            f"the map reads {', '.join(map(str, sites))}, but the {learned.WHAT} was not learned "
            f"at {', '.join(map(str, missing))}: learn it at all sites of the map"
        )
    by_site = [learned.at(site).tensors for site in sites]
    return {name: torch.cat([one[name] for one in by_site], dim=-1) for name in by_site[0]}


def _carried(
    joined: dict[str, Tensor], activation_map: ActivationMap, rule: TransferRule
) -> SiteDirection:
    classes = carried_classes(joined, activation_map)
    vectors: Float[Tensor, "position d_target"]
    if rule == "linear" and isinstance(activation_map, AffineMap):
        vectors = activation_map.linear(joined["vectors"])
    elif rule == "difference":
        vectors = _mean(classes["positive_states"]) - _mean(classes["negative_states"])
    else:
        vectors = activation_map(joined["vectors"])
    return SiteDirection(vectors=vectors.float(), **classes)


def carried_classes(
    joined: Mapping[str, Tensor], activation_map: ActivationMap
) -> dict[str, Tensor]:
    """Returns the images of the states of both classes, and the means of these images.

    Args:
        joined: States and means of all sites that the map reads.
        activation_map: The map.

    Returns:
        States and means by the name of their attribute.
    """
    points = {name: activation_map(joined[name]) for name in ("positive_states", "negative_states")}
    # Where a mean lies there may be no state at all, and a map that is not affine knows nothing.
    means = {
        f"{side}_mean": activation_map(joined[f"{side}_mean"])
        if isinstance(activation_map, AffineMap)
        else _mean(points[f"{side}_states"]).float()
        for side in ("positive", "negative")
    }
    return means | points


def _mean(states: Float[Tensor, "prompt position d_model"]) -> Float[Tensor, "position d_model"]:
    # In float32 the mean of many large states loses the small difference between two of them.
    return states.double().mean(0)
