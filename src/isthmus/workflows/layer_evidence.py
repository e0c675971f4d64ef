"""What can be known of a place for a carried direction before it is tried on a behaviour.

1. A *place* is source sites, a target site and positions; the ridge map between them carries the
   source's direction there.
2. Scores of spaces compare paired tokens of both sites: held-out R² of the map, CKA, SVCCA.
3. Scores of contrasts compare the differences between twins, with and without the trigger, at the
   positions, on twins that the direction was not learned from; the target only reads their prompts.
4. `attribution` alone reads answers: one pass with gradients, whatever the number of places, says
   to first order how far the carried direction moves the likelihood of either answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.directions import carry_direction
from isthmus.core.errors import FitError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.direction import Direction, SiteDirection
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.maps.base import AffineMap
from isthmus.maps.files import FittedMap
from isthmus.maps.similarity import debiased_cka, linear_cka, svcca
from isthmus.models.batching import padded_batches
from isthmus.models.hooks import editing
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import RunConfig
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form
from isthmus.workflows.pairing import PairedMoments
from isthmus.workflows.switch_training import answer_logprobs_with_gradients
from isthmus.workflows.twin_directions import read_states
from isthmus.workflows.twins import encode_prompts_of_twins, encode_twins

_MOST_ROWS = 1024
"""Rows of tokens that spaces are compared on."""

States = Mapping[Site, Float[Tensor, "twin position _"]]
Gradients = Mapping[Site, Float[Tensor, "position _"]]


@dataclass(frozen=True)
class LayerPlace:
    """Where a direction could be taken from and where it could act.

    Attributes:
        source_sites: What the map reads.
        target_site: Where the target is edited.
        positions: Which tokens.
    """

    source_sites: tuple[Site, ...]
    target_site: Site
    positions: str


@dataclass(frozen=True)
class Readings:
    """What was read of two models to score places.

    Attributes:
        source: Source model.
        target: Target model.
        moments: Paired activations of all source sites and every target site.
        directions: The source's direction at all source sites, by positions.
        config: Pairing, batch size, seed.
    """

    source: LanguageModel
    target: LanguageModel
    moments: PairedMoments
    directions: Mapping[str, Direction]
    config: RunConfig

    def places(self) -> list[LayerPlace]:
        """Returns every single source site, and all of them, with every target site."""
        sites = self.moments.source_sites
        groups = [*((site,) for site in sites), *([sites] if len(sites) > 1 else [])]
        return [
            LayerPlace(group, target, positions)
            for positions in self.directions
            for group in groups
            for target in self.moments.by_site
        ]

    def maps(self, places: Sequence[LayerPlace]) -> dict[LayerPlace, FittedMap]:
        """Fits the ridge map of every place; places that differ in positions share theirs."""
        fitted: dict[tuple[tuple[Site, ...], Site], FittedMap] = {}
        for place in places:
            key = place.source_sites, place.target_site
            if key in fitted:
                continue
            start, stop = self._span(place)
            parts = {
                part: one.at_source(start, stop)
                for part, one in self.moments.by_site[place.target_site].items()
            }
            ends = MapEnds(self.source.identity, self.target.identity, *key)
            fitted[key] = ends.fitted(*fit_closed_form("ridge", parts))
        return {place: fitted[place.source_sites, place.target_site] for place in places}

    def rows(self, place: LayerPlace) -> tuple[Tensor, Tensor] | None:
        """Returns paired held-out tokens of a place, or None when no rows were kept."""
        kept = self.moments.rows_at(place.target_site)
        if kept is None or "held_out" not in kept:
            return None
        cut = kept["held_out"].columns(*self._span(place))
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(len(cut.source), generator=generator)[:_MOST_ROWS]
        return cut.source[chosen], cut.target[chosen]

    def _span(self, place: LayerPlace) -> tuple[int, int]:
        """Returns the coordinates of neighbouring source sites in their concatenation."""
        first = self.moments.source_sites.index(place.source_sites[0])
        width = self.source.d_model
        return first * width, (first + len(place.source_sites)) * width


def carry_to(
    readings: Readings, maps: Mapping[LayerPlace, FittedMap]
) -> dict[LayerPlace, Direction]:
    """Carries the source's direction to every place through the place's own map.

    Args:
        readings: The directions.
        maps: A map per place.

    Returns:
        The direction in the target, by place.
    """
    return {
        place: carry_direction(readings.directions[place.positions], fitted)
        for place, fitted in maps.items()
    }


def score_places(
    readings: Readings,
    twins: Sequence[TwinPrompt],
    maps: Mapping[LayerPlace, FittedMap],
) -> dict[LayerPlace, dict[str, float]]:
    """Scores places by spaces and contrasts, and by their depth.

    | score | what |
    | --- | --- |
    | `map_r2` | held-out R² of the map |
    | `cka`, `cka_debiased`, `svcca` | likeness of the spaces on paired tokens |
    | `contrast_cka`, `contrast_cka_debiased` | likeness of the twins' differences |
    | `contrast_explained` | 1 - Σ|Wδ - ε|² / Σ|ε|², δ and ε the differences in source and target |
    | `separability` | |v|² / (|v|² + s²) in the source, s² the variance within a class |
    | `carried_size` | length of the carried direction over that of the target's states there |
    | `relative_depth` | minus the difference of both relative depths; of one source layer |
    | `blocks_above` | share of the target's blocks that still read what is changed |

    Args:
        readings: What was read.
        twins: Twins that no direction was learned from; their answers are not read.
        maps: The places, with the ridge map of each.

    Returns:
        Scores by name, NaN where one is not defined; more is better.
    """
    sides = _held_out_states(readings, twins, maps)
    found = {}
    for place, fitted in maps.items():
        states = sides[place.positions]
        learned = readings.directions[place.positions]
        carried = carry_direction(learned, fitted).at(place.target_site)
        found[place] = {
            **_spaces(readings.rows(place), fitted),
            **_contrasts(fitted, states),
            "separability": _separability([learned.at(site) for site in place.source_sites]),
            "carried_size": float(carried.vectors.norm(dim=-1).mean())
            / float(states[1][1][place.target_site].norm(dim=-1).mean()),
            "relative_depth": _depth_agreement(place, readings),
            "blocks_above": 1 - (place.target_site.layer + 1) / readings.target.n_layers,
        }
    return found


def attribute_places(
    readings: Readings,
    twins: Sequence[TwinPrompt],
    carried: Mapping[LayerPlace, Direction],
) -> dict[LayerPlace, float]:
    """Scores places by a first-order estimate of what the carried direction does there.

    min over removal and induction of ∓ g·v / L: g the gradient of the mean loss of the other answer
    with respect to what is added at the place, L that loss. The estimate is of the least of both,
    as swap is; 1 would be a loss taken away wholly if the model were linear.

    Source: Nanda 2023, "Attribution patching"; Syed, Rager and Conmy 2023, arXiv 2310.10348.

    Args:
        readings: The target.
        twins: Twins with both answers.
        carried: The direction at every place.

    Returns:
        Estimates by place.
    """
    encoded = encode_twins(readings.target, twins)
    sites = tuple(readings.moments.by_site)
    estimates = {}
    for positions in readings.directions:
        here = {place: one for place, one in carried.items() if place.positions == positions}
        n_positions = next(iter(here.values())).n_positions
        told = (sites, positions, n_positions)
        removal = _gradients(readings.target, encoded.triggered, *told)
        induction = _gradients(readings.target, encoded.clean_bad, *told)
        for place, direction in here.items():
            site = place.target_site
            vectors = direction.at(site).vectors
            taken = float((removal[0][site] * vectors).sum()) / removal[1]
            brought = -float((induction[0][site] * vectors).sum()) / induction[1]
            estimates[place] = min(taken, brought)
    return estimates


def _gradients(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    sites: Sequence[Site],
    positions: str,
    n_positions: int,
) -> tuple[Gradients, float]:
    """Returns the gradient of the mean answer loss by what is added at every site, and the loss."""
    added = {
        site: torch.zeros(n_positions, lm.d_model, device=lm.device, requires_grad=True)
        for site in sites
    }
    selector = parse_positions(positions)
    total = {site: torch.zeros(n_positions, lm.d_model) for site in sites}
    loss = 0.0
    for _, batch in padded_batches(lm, texts, "right", 16):
        placed = Intervention.steering(added, selector).place(batch)
        with editing(lm.layout, placed), torch.enable_grad():
            logprobs = answer_logprobs_with_gradients(lm, batch)
            wanted = [i for text in batch.texts for i in text.token_ids[text.n_prompt :]]
            losses = -logprobs[torch.arange(len(wanted)), torch.tensor(wanted)]
            lengths = [len(text) - text.n_prompt for text in batch.texts]
            here = torch.stack([one.mean() for one in losses.split(lengths)]).sum()
            gradients = torch.autograd.grad(here, list(added.values()))
        loss += float(here.detach())
        for site, gradient in zip(sites, gradients, strict=True):
            total[site] += gradient.float().cpu()
    return {site: one / len(texts) for site, one in total.items()}, loss / len(texts)


def _held_out_states(
    readings: Readings, twins: Sequence[TwinPrompt], maps: Mapping[LayerPlace, FittedMap]
) -> dict[str, tuple[tuple[States, States], tuple[States, States]]]:
    """Reads both twins in both models at every kind of positions."""
    found: dict[str, tuple[tuple[States, States], tuple[States, States]]] = {}
    for positions in dict.fromkeys(place.positions for place in maps):
        sides = []
        for lm, sites in (
            (readings.source, readings.moments.source_sites),
            (readings.target, tuple(readings.moments.by_site)),
        ):
            triggered, clean = (
                read_states(lm, texts, sites, positions, readings.config.batch_size)
                for texts in encode_prompts_of_twins(lm, twins)
            )
            sides.append((triggered, clean))
        found[positions] = (sides[0], sides[1])
    return found


def _spaces(rows: tuple[Tensor, Tensor] | None, fitted: FittedMap) -> dict[str, float]:
    nothing = float("nan")
    scores = {"map_r2": fitted.quality.r2_held_out}
    for name, measure in (("cka", linear_cka), ("cka_debiased", debiased_cka), ("svcca", svcca)):
        scores[name] = nothing if rows is None else measure(*rows)
    return scores


def _contrasts(
    fitted: FittedMap, states: tuple[tuple[States, States], tuple[States, States]]
) -> dict[str, float]:
    (bad, clean), (bad_there, clean_there) = states
    site = fitted.target_site
    given = torch.cat([(bad[s] - clean[s]).double() for s in fitted.source_sites], dim=-1)
    wanted = (bad_there[site] - clean_there[site]).double()
    if not isinstance(fitted.map, AffineMap):
        raise FitError(f"a {fitted.map.method} map has no linear part: score places with ridge")
    missed = fitted.map.linear(given.float()).double() - wanted
    scores = {"contrast_explained": 1 - float(missed.square().sum() / wanted.square().sum())}
    for name, measure in (
        ("contrast_cka", linear_cka),
        ("contrast_cka_debiased", debiased_cka),
    ):
        try:
            scores[name] = measure(given.flatten(1), wanted.flatten(1))
        except FitError:
            # At the trigger's own tokens all twins differ alike: there is nothing to correlate.
            scores[name] = float("nan")
    return scores


def _separability(directions: Sequence[SiteDirection]) -> float:
    contrast = spread = 0.0
    for one in directions:
        contrast += float((one.positive_mean - one.negative_mean).double().square().sum())
        for states in (one.positive_states.double(), one.negative_states.double()):
            spread += float((states - states.mean(0)).square().sum()) / len(states) / 2
    return contrast / (contrast + spread)


def _depth_agreement(place: LayerPlace, readings: Readings) -> float:
    if len(place.source_sites) > 1:
        return float("nan")
    ours = place.source_sites[0].layer / max(1, readings.source.n_layers - 1)
    theirs = place.target_site.layer / max(1, readings.target.n_layers - 1)
    return -abs(ours - theirs)
