"""Fits the maps of one crossing and measures each on held-out pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch

from isthmus.core.errors import ConfigError, FitError, NonFiniteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.options import require_word
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.maps.autoencoder import AutoencoderSettings
from isthmus.maps.autoencoder_training import train_autoencoder
from isthmus.maps.automatic import choose_map, errors_by_text
from isthmus.maps.base import ActivationMap, MapQuality
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.files import FittedMap
from isthmus.maps.fitting import TwoWayMoments
from isthmus.maps.identity import identity_map
from isthmus.maps.moments import PairMoments
from isthmus.maps.quality import (
    held_out_quality,
    held_out_quality_on_pairs,
    held_out_quality_on_rows,
)
from isthmus.maps.ridge import RidgeFitter
from isthmus.maps.rows import PairedRows, Pairs, in_memory, moments_of
from isthmus.maps.shelf import FROM_BOTH_WAYS, FROM_MOMENTS, FROM_ROWS, SIMPLEST_FIRST
from isthmus.workflows.config import MapMethod
from isthmus.workflows.contrast_maps import (
    FITTED_ON,
    ON_CONTRASTS,
    Contrasts,
    fit_and_measure,
    fit_on_contrasts,
    shuffled_contrasts,
)
from isthmus.workflows.pairing import PARTS, Part

AUTOENCODERS: Mapping[str, AutoencoderSettings] = {
    "autoencoder": AutoencoderSettings.paper(),
    "autoencoder_well_trained": AutoencoderSettings.well_trained(),
    "sgd_affine": AutoencoderSettings.paper_affine(),
}
"""Maps that are trained on rows; the first and the last as arXiv 2503.04429 does."""

ONE_SITE = frozenset({"ridge_one_layer", "unembedding_rows", "identity"})
"""Maps that read the source site nearest in relative depth alone."""

TO_ONE_SITE = frozenset({"unembedding_rows", "identity"})
"""Maps that know of no site but one of each model."""


@dataclass(frozen=True)
class Besides:
    """What some maps are fitted on beside paired states; each is asked for when it is needed.

    Attributes:
        vocabulary: Gives the rows that `unembedding_rows` is fitted on.
        contrasts: Gives the differences that `ridge_contrast` is fitted on, too.
    """

    vocabulary: Callable[[], PairedRows] | None = None
    contrasts: Callable[[], Contrasts] | None = None


_NOTHING = Besides()


@dataclass(frozen=True)
class MapEnds:
    """Where maps lead from and to.

    Attributes:
        source: Source model.
        target: Target model.
        source_sites: Source sites that are read, in this order.
        target_site: Target site, the first of several.
        further_target_sites: The others, whose activations stand behind the first one's.
    """

    source: ModelIdentity
    target: ModelIdentity
    source_sites: tuple[Site, ...]
    target_site: Site
    further_target_sites: tuple[Site, ...] = ()

    @property
    def target_sites(self) -> tuple[Site, ...]:
        """Every target site, in the order of the map's output."""
        return (self.target_site, *self.further_target_sites)

    @property
    def nearest_source_site(self) -> Site:
        """The source site at the relative depth of the target site, of several the mean."""
        layers = [site.layer for site in self.target_sites]
        depth = sum(layers) / len(layers) / max(1, self.target.n_layers - 1)
        wanted = depth * (self.source.n_layers - 1)
        return min(self.source_sites, key=lambda site: abs(site.layer - wanted))

    def at(self, source_sites: Sequence[Site]) -> "MapEnds":
        """Returns the same ends with other source sites."""
        return replace(self, source_sites=tuple(source_sites))

    def fitted(self, made: ActivationMap, quality: MapQuality, **provenance: object) -> FittedMap:
        """Returns a map together with its ends and quality."""
        return FittedMap(
            made,
            self.source,
            self.target,
            self.source_sites,
            self.target_site,
            quality,
            provenance,
            self.further_target_sites,
        )


def fit_closed_form(
    method: MapMethod, moments: Mapping[Part, PairMoments]
) -> tuple[ActivationMap, MapQuality]:
    """Fits a map that needs no more than moments.

    Args:
        method: One of `maps.shelf.FROM_MOMENTS`.
        moments: Pairs to fit on, to choose a strength on, and to measure on.

    Returns:
        The map and its quality on the held-out pairs.

    Raises:
        FitError: If there are too few pairs.
        ConfigError: If the map needs more than moments.
    """
    if method not in FROM_MOMENTS:
        raise ConfigError(
            f"the {method} map needs more than moments: fit it on rows, or use one of "
            f"{', '.join(FROM_MOMENTS)}"
        )
    train = moments["train"]
    fitted = FROM_MOMENTS[method].fit(train, moments["selection"])
    # The same fitter serves two names: what is written says which one was asked for.
    made = replace(fitted, method=method)
    return made, held_out_quality(made, moments["held_out"], train.n)


def fit_map(
    method: MapMethod,
    rows: Mapping[Part, Pairs],
    ends: MapEnds,
    seed: int,
    progress: Progress,
    besides: Besides = _NOTHING,
) -> FittedMap:
    """Fits one map on pairs, which are read batch by batch where the map allows it.

    Args:
        method: Which map; `ridge_one_layer`, `unembedding_rows` and `identity` read only the source
            site nearest in relative depth, all others every source site. `auto` fits those of
            `maps.shelf.SIMPLEST_FIRST` and chooses on half of the held-out texts; its quality is
            that on the other half.
        rows: Paired activations by part, in memory or in a store. `auto` and maps of
            `maps.shelf.FROM_ROWS` gather them in memory.
        ends: Models and sites.
        seed: Anchors, landmarks, first weights and order of the trained maps.
        progress: Who shows progress.
        besides: What `unembedding_rows` and `ridge_contrast` need.

    Returns:
        The map with its ends and its quality on held-out pairs.

    Raises:
        FitError: If a part has no pairs, or too few.
        ConfigError: If there is no such map, it needs a vocabulary or contrasts and none are given,
            or it cannot lead to several sites.
    """
    require_word("map", method, get_args(MapMethod))
    _require_parts([part for part in PARTS if part not in rows or not rows[part].n_rows])
    if ends.further_target_sites and method in TO_ONE_SITE:
        raise ConfigError(
            f"the {method} map leads to one site: give one target site, or use another map"
        )
    if method == "auto":
        return _automatic(_gathered(rows, "auto"), ends, seed, progress)
    if method in ONE_SITE:
        ends, rows = _one_site(ends, rows)
    if method in FROM_MOMENTS:
        made, quality = fit_closed_form(method, {p: moments_of(r) for p, r in rows.items()})
        return ends.fitted(made, quality)
    if method == "unembedding_rows":
        made, n_train = _on_vocabulary(besides.vocabulary)
    elif method == ON_CONTRASTS:
        made, n_train = _on_contrasts(rows, besides.contrasts), rows["train"].n_rows
    else:
        made, n_train = _fitted(method, rows, ends, seed, progress), rows["train"].n_rows
    quality = held_out_quality_on_pairs(made, rows["held_out"], n_train)
    return ends.fitted(made, quality, seed=seed)


def _require_parts(missing: Sequence[Part]) -> None:
    if missing:
        raise FitError(f"no pairs for {[*missing]}: give at least 10 texts")


def _gathered(rows: Mapping[Part, Pairs], what: str) -> dict[Part, PairedRows]:
    return {part: in_memory(pairs, f"the {what} map") for part, pairs in rows.items()}


def _fitted(
    method: str,
    rows: Mapping[Part, Pairs],
    ends: MapEnds,
    seed: int,
    progress: Progress,
) -> ActivationMap:
    train, selection = rows["train"], rows["selection"]
    generator = torch.Generator().manual_seed(seed)
    if method in FROM_BOTH_WAYS:
        both = TwoWayMoments.of(train), TwoWayMoments.of(selection)
        return FROM_BOTH_WAYS[method].fit(*both)
    if method not in FROM_ROWS and method not in AUTOENCODERS:
        return identity_map(ends.source.d_model, ends.target.d_model)
    with progress.stage(f"train the {method} map") as advance:

        def on_step(_step: int, _loss: float) -> None:
            advance(1)

        if method in FROM_ROWS:
            kept = _gathered({"train": train, "selection": selection}, method)
            return FROM_ROWS[method].fit(kept["train"], kept["selection"], generator, on_step)
        made = train_autoencoder(train, AUTOENCODERS[method], generator, on_step, selection)
        return replace(made, method=method)


def _on_vocabulary(vocabulary: Callable[[], PairedRows] | None) -> tuple[ActivationMap, int]:
    """Fits ridge on unembedding rows; every tenth shared token chooses the strength."""
    if vocabulary is None:
        raise ConfigError(
            "the unembedding_rows map is fitted on the models' heads, which are not at hand here: "
            "use learn-map or run, or another map"
        )
    pairs = vocabulary()
    is_selection = torch.arange(len(pairs.source)) % 10 == 3
    train, selection = (
        PairedRows(pairs.source[kept], pairs.target[kept]) for kept in (~is_selection, is_selection)
    )
    ridge = RidgeFitter().fit(train.moments, selection.moments)
    made = replace(ridge, method="unembedding_rows")
    return made, len(train.source)


def _on_contrasts(
    rows: Mapping[Part, Pairs], contrasts: Callable[[], Contrasts] | None
) -> ActivationMap:
    if contrasts is None:
        raise ConfigError(
            f"the {ON_CONTRASTS} map is fitted on what differs between contrast prompts, too: give "
            "contrasts, or use ridge"
        )
    return fit_on_contrasts({part: moments_of(rows[part]) for part in FITTED_ON}, contrasts())


def _automatic(
    rows: Mapping[Part, PairedRows], ends: MapEnds, seed: int, progress: Progress
) -> FittedMap:
    choosing, reporting = _halves(rows["held_out"])
    parts: dict[Part, PairedRows] = {**rows, "held_out": choosing}
    fitted: dict[str, FittedMap] = {}
    failed: dict[str, str] = {}
    for name in SIMPLEST_FIRST:
        try:
            fitted[name] = fit_map(name, parts, ends, seed, progress)
        except (FitError, NonFiniteError) as error:
            failed[name] = str(error)
    errors = {
        name: errors_by_text(one.map, _rows_for(one, choosing, ends))
        for name, one in fitted.items()
    }
    chosen, scores = choose_map(errors, SIMPLEST_FIRST)
    best = fitted[chosen]
    measured = _rows_for(best, reporting, ends)
    quality = held_out_quality_on_rows(
        best.map, measured.source, measured.target, best.quality.n_train
    )
    return ends.at(best.source_sites).fitted(
        best.map,
        quality,
        seed=seed,
        candidates=[score.to_json() for score in scores],
        not_fitted=failed,
        n_choosing=len(choosing.source),
    )


def measured_again(fitted: FittedMap, rows: Mapping[Part, Pairs], ends: MapEnds) -> FittedMap:
    """Returns a map that was changed after its fit with its quality on the held-out pairs.

    Args:
        fitted: The map.
        rows: The pairs that it was fitted on, by part.
        ends: Models and sites that the rows are of.

    Returns:
        The same map with another quality.
    """
    held_out = rows["held_out"]
    if fitted.source_sites != ends.source_sites:
        held_out = held_out.columns(*_nearest_columns(ends))
    quality = held_out_quality_on_pairs(fitted.map, held_out, fitted.quality.n_train)
    return replace(fitted, quality=quality)


def _rows_for(fitted: FittedMap, rows: PairedRows, ends: MapEnds) -> PairedRows:
    """Cuts rows down to the source sites that a map reads."""
    if fitted.source_sites == ends.source_sites:
        return rows
    return rows.columns(*_nearest_columns(ends))


def _halves(rows: PairedRows) -> tuple[PairedRows, PairedRows]:
    """Cuts held-out rows in two between texts, so that no text both chooses and reports."""
    ends = torch.tensor(rows.n_per_text or [1] * len(rows.source)).cumsum(0)
    n_texts = int((ends <= len(rows.source) // 2).sum())
    cut = int(ends[n_texts - 1]) if n_texts else 0
    # Where nobody counted, blocks of rows stand for texts.
    has_texts = not rows.n_per_text or sum(n > 0 for n in rows.n_per_text[:n_texts]) > 1
    if not 1 < cut < len(rows.source) - 1 or not has_texts:
        raise FitError(
            f"auto cannot cut {len(rows.source)} held-out pairs in two: give at least 40 texts"
        )
    texts = rows.n_per_text
    return (
        PairedRows(rows.source[:cut], rows.target[:cut], texts[:n_texts]),
        PairedRows(rows.source[cut:], rows.target[cut:], texts[n_texts:]),
    )


def _one_site(ends: MapEnds, rows: Mapping[Part, Pairs]) -> tuple[MapEnds, dict[Part, Pairs]]:
    cut = {part: pairs.columns(*_nearest_columns(ends)) for part, pairs in rows.items()}
    return ends.at([ends.nearest_source_site]), cut


def _nearest_columns(ends: MapEnds) -> tuple[int, int]:
    start = ends.source_sites.index(ends.nearest_source_site) * ends.source.d_model
    return start, start + ends.source.d_model


def fit_streamed(
    method: MapMethod, moments: Mapping[Part, PairMoments], ends: MapEnds
) -> FittedMap:
    """Fits one map of `maps.shelf.FROM_MOMENTS` on pairs of which only the moments were kept.

    Args:
        method: Which map.
        moments: Pairs to fit on, to choose a strength on, and to measure on.
        ends: Models and sites.

    Returns:
        The map with its ends and its quality on held-out pairs.

    Raises:
        FitError: If a part has too few pairs.
        ConfigError: If the map needs more than moments.
    """
    _require_parts([part for part in PARTS if part not in moments or not moments[part].n])
    if method in ONE_SITE:
        moments = {p: one.at_source(*_nearest_columns(ends)) for p, one in moments.items()}
        ends = ends.at([ends.nearest_source_site])
    return ends.fitted(*fit_closed_form(method, moments))


def shuffled_map(
    rows: Mapping[Part, PairedRows], ends: MapEnds, seed: int, contrasts: Contrasts | None = None
) -> FittedMap:
    """Fits the ridge map on pairs whose targets were shuffled: a control that knows nothing.

    Args:
        rows: Paired activations by part.
        ends: Models and sites.
        seed: Which order.
        contrasts: Differences that the map is fitted on, too, shuffled with their signs; none for
            a map of states.

    Returns:
        The map, with its quality on held-out pairs that were not shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = {
        part: PairedRows(r.source, shuffled_rows(r.target, generator)) for part, r in rows.items()
    }
    shuffled["held_out"] = rows["held_out"]
    moments = {part: moments_of(r) for part, r in shuffled.items()}
    if contrasts is None:
        made, quality = fit_closed_form("ridge", moments)
        return ends.fitted(made, quality, shuffled_seed=seed)
    mixed = shuffled_contrasts(contrasts, generator)
    return ends.fitted(*fit_and_measure(moments, mixed), shuffled_seed=seed)
