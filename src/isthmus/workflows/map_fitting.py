"""Fits the maps of one crossing and measures each on held-out pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from isthmus.core.errors import FitError
from isthmus.core.identity import ModelIdentity
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.maps.autoencoder import AutoencoderSettings, fit_autoencoder
from isthmus.maps.base import ActivationMap, MapQuality
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.files import FittedMap
from isthmus.maps.identity import identity_map
from isthmus.maps.moments import PairMoments
from isthmus.maps.procrustes import ProcrustesFitter
from isthmus.maps.quality import held_out_quality, held_out_quality_on_rows
from isthmus.maps.reduced_rank import ReducedRankFitter
from isthmus.maps.ridge import RidgeFitter
from isthmus.workflows.config import MapMethod
from isthmus.workflows.pairing import PairedRows, Part

AUTOENCODERS: Mapping[str, AutoencoderSettings] = {
    "autoencoder": AutoencoderSettings.paper(),
    "autoencoder_well_trained": AutoencoderSettings.well_trained(),
    "sgd_affine": AutoencoderSettings.paper_affine(),
}
"""Maps that are trained on rows; the first and the last as arXiv 2503.04429 does."""

REDUCED_RANK = 64


@dataclass(frozen=True)
class MapEnds:
    """Where maps lead from and to.

    Attributes:
        source: Source model.
        target: Target model.
        source_sites: Source sites that are read, in this order.
        target_site: Target site.
    """

    source: ModelIdentity
    target: ModelIdentity
    source_sites: tuple[Site, ...]
    target_site: Site

    @property
    def nearest_source_site(self) -> Site:
        """The source site at the relative depth of the target site."""
        depth = self.target_site.layer / max(1, self.target.n_layers - 1)
        wanted = depth * (self.source.n_layers - 1)
        return min(self.source_sites, key=lambda site: abs(site.layer - wanted))

    def at(self, source_sites: Sequence[Site]) -> "MapEnds":
        """Returns the same ends with other source sites."""
        return MapEnds(self.source, self.target, tuple(source_sites), self.target_site)

    def fitted(self, made: ActivationMap, quality: MapQuality, **provenance: object) -> FittedMap:
        """Returns a map together with its ends and quality."""
        return FittedMap(
            made, self.source, self.target, self.source_sites, self.target_site, quality, provenance
        )


def moments_of(rows: PairedRows) -> PairMoments:
    """Returns the moments of rows that are in memory."""
    moments = PairMoments(rows.source.shape[1], rows.target.shape[1])
    moments.update(rows.source, rows.target)
    return moments


def fit_closed_form(
    method: MapMethod, moments: Mapping[Part, PairMoments]
) -> tuple[ActivationMap, MapQuality]:
    """Fits a map that needs no more than moments.

    Args:
        method: `ridge`, `ridge_one_layer`, `procrustes` or `reduced_rank`.
        moments: Pairs to fit on, to choose a strength on, and to measure on.

    Returns:
        The map and its quality on the held-out pairs.

    Raises:
        FitError: If there are too few pairs.
    """
    train, selection = moments["train"], moments["selection"]
    if method == "procrustes":
        made = ProcrustesFitter().fit(train)
    elif method == "reduced_rank":
        rank = min(REDUCED_RANK, train.d_source, train.d_target)
        made = ReducedRankFitter(rank).fit(train, selection)
    else:
        made = RidgeFitter().fit(train, selection)
    return made, held_out_quality(made, moments["held_out"], train.n)


def fit_map(
    method: MapMethod,
    rows: Mapping[Part, PairedRows],
    ends: MapEnds,
    seed: int,
    progress: Progress,
) -> FittedMap:
    """Fits one map on rows that are in memory.

    Args:
        method: Which map; `ridge_one_layer` and `identity` read only the source site nearest in
            relative depth, all others every source site.
        rows: Paired activations by part.
        ends: Models and sites.
        seed: First weights and order of the trained maps.
        progress: Who shows progress.

    Returns:
        The map with its ends and its quality on held-out pairs.

    Raises:
        FitError: If a part has no pairs, or too few.
    """
    if missing := [part for part in ("train", "selection", "held_out") if part not in rows]:
        raise FitError(f"no pairs for {missing}: give at least 10 texts")
    if method in {"ridge_one_layer", "identity"}:
        ends, rows = _one_site(ends, rows)
    if method == "identity":
        made: ActivationMap = identity_map(ends.source.d_model, ends.target.d_model)
    elif method in AUTOENCODERS:
        made = _trained(method, rows["train"], seed, progress)
    else:
        made, quality = fit_closed_form(method, {p: moments_of(r) for p, r in rows.items()})
        return ends.fitted(made, quality)
    held_out = rows["held_out"]
    quality = held_out_quality_on_rows(
        made, held_out.source, held_out.target, len(rows["train"].source)
    )
    return ends.fitted(made, quality, seed=seed)


def _trained(method: str, rows: PairedRows, seed: int, progress: Progress) -> ActivationMap:
    with progress.stage(f"train the {method} map") as advance:
        return fit_autoencoder(
            rows.source,
            rows.target,
            AUTOENCODERS[method],
            torch.Generator().manual_seed(seed),
            lambda _step, _loss: advance(1),
        )


def _one_site(
    ends: MapEnds, rows: Mapping[Part, PairedRows]
) -> tuple[MapEnds, dict[Part, PairedRows]]:
    site = ends.nearest_source_site
    start = ends.source_sites.index(site) * ends.source.d_model
    columns = slice(start, start + ends.source.d_model)
    cut = {part: PairedRows(r.source[:, columns], r.target) for part, r in rows.items()}
    return ends.at([site]), cut


def shuffled_map(rows: Mapping[Part, PairedRows], ends: MapEnds, seed: int) -> FittedMap:
    """Fits the ridge map on pairs whose targets were shuffled: a control that knows nothing.

    Args:
        rows: Paired activations by part.
        ends: Models and sites.
        seed: Which order.

    Returns:
        The map, with its quality on held-out pairs that were not shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = {
        part: PairedRows(r.source, shuffled_rows(r.target, generator)) for part, r in rows.items()
    }
    shuffled["held_out"] = rows["held_out"]
    moments = {part: moments_of(r) for part, r in shuffled.items()}
    made, quality = fit_closed_form("ridge", moments)
    return ends.fitted(made, quality, shuffled_seed=seed)
