"""Carries a switch to another model: the source's mapped change, refitted on the target's states.

1. Both models are read over the same texts and their twins (`twin_reading.py`). A map from all
   source layers to every target site is fitted on their states and, for `ridge_contrast`, on what
   differs between twins: that is what it has to carry. The target's own base is never read.
2. What changes in the source goes through the map's linear part; the target's own state plus that
   is the wanted state.
3. The target's edits are fitted to wanted states as native ones are (`switch_fitting.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from isthmus.carrying.switches import Switch
from isthmus.core.certificate import worst_quality
from isthmus.core.errors import ConfigError
from isthmus.core.identity import ModelIdentity
from isthmus.core.options import require_word
from isthmus.core.progress import Progress
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import TokenBatch
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.positions import parse_positions
from isthmus.maps.base import AffineMap
from isthmus.maps.contrasts import difference_moments, shuffled_differences, with_differences
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.identity import identity_map
from isthmus.maps.moments import PairMoments
from isthmus.maps.quality import held_out_quality
from isthmus.maps.ridge import RidgeFitter
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.switch_fitting import FitSettings, Wanted, fit_edits
from isthmus.workflows.twin_reading import ReadTexts, TwinReadingSettings, read_twins, sites_read

MAP_METHODS = ("ridge_contrast", "ridge", "shuffled_map", "identity_map")


@dataclass(frozen=True)
class DistillSettings:
    """How a switch is carried.

    Attributes:
        rank: Rank of the target's edits; None for full maps.
        map_method: `ridge_contrast` fits states and differences of twins, without twins as `ridge`
            does; `ridge` fits states alone;
            `shuffled_map` is the first of those that the reading allows, fitted on shuffled pairs;
            `identity_map` pads or cuts the state of the source's nearest layer: controls. Between a
            model and itself the last is exact.
        ridge_strengths: Candidates for the ridge map.
        reading: Sites, triggers and length of answers.
        seed: Order of shuffled pairs.
    """

    rank: int | None = 8
    map_method: str = "ridge_contrast"
    ridge_strengths: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    reading: TwinReadingSettings = field(default_factory=TwinReadingSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        require_word("map", self.map_method, MAP_METHODS)


@dataclass(frozen=True)
class SwitchReading:
    """Both models over the same texts: what every map between them is fitted on.

    Attributes:
        source: The model in which something changes.
        target: The model that shall carry it.
        parts: Texts to fit on and texts to choose on.
        batch_size: Texts per forward pass.
    """

    source: LanguageModel
    target: LanguageModel
    parts: tuple[ReadTexts, ReadTexts]
    batch_size: int = 64

    @cached_property
    def states(self) -> tuple[PairMoments, PairMoments]:
        """Moments of the paired states of either part, all target sites side by side."""
        train, selection = (_moments_of(*part.states()) for part in self.parts)
        return train, selection

    @cached_property
    def differences(self) -> tuple[PairMoments, PairMoments] | None:
        """Moments of the paired differences of twins; None where no twins were read."""
        if not all(part.twin_pairs for part in self.parts):
            return None
        train, selection = (difference_moments(*part.differences()) for part in self.parts)
        return train, selection


def prompts_of_change(
    switched: Sequence[str], others: Sequence[str], plain: Sequence[str]
) -> tuple[str, ...]:
    """Returns prompts in which something is to change, and a quarter as many of either other kind.

    Args:
        switched: Prompts with the trigger that is switched.
        others: Prompts with the other trigger.
        plain: Prompts with neither.

    Returns:
        All of the first and some of the others, which say where nothing is to change.
    """
    n_some = max(1, len(switched) // 4)
    return (*switched, *others[:n_some], *plain[:n_some])


def read_switch(
    models: tuple[LanguageModel, LanguageModel],
    prompts: tuple[Sequence[str], Sequence[str]],
    settings: TwinReadingSettings,
    switch: Switch | None = None,
) -> SwitchReading:
    """Reads source and target once, for any number of maps.

    Refuses a source that does not carry the switch (`IdentityError`).

    Args:
        models: The source, and the model that shall carry the new switch; both are fine-tuned, or
            both bases.
        prompts: Prompts, triggers included, to fit on and to choose ridge strengths on.
        settings: Sites, triggers and length of answers.
        switch: Of the source; needed where no triggers are given.

    Returns:
        What `distil_switch` needs.
    """
    source, target = models
    if switch is not None:
        switch.require_carrier(source.identity)
    train, selection = (read_twins(models, part, settings, switch) for part in prompts)
    return SwitchReading(source, target, (train, selection), settings.batch_size)


def distil_switch(
    reading: SwitchReading,
    switch: Switch,
    target_base: ModelIdentity,
    settings: DistillSettings,
    progress: Progress,
) -> Switch:
    """Fits a switch of the target from what a source's switch does in the source.

    Args:
        reading: Of both models.
        switch: The source's.
        target_base: The target's other end, which is not read; for the record only.
        settings: Rank and map.
        progress: Who shows progress.

    Returns:
        The target's switch, with method `distilled`.
    """
    edits = distil_edits(reading, settings, progress, switch.positions)
    ends = (target_base, reading.target.identity)
    base, fine_tuned = ends if switch.to == "base" else ends[::-1]
    provenance = {"source": switch.carrier.to_json(), "map": settings.map_method}
    return Switch(
        edits, base, fine_tuned, switch.to, "distilled", switch.positions, provenance=provenance
    )


def distil_edits(
    reading: SwitchReading, settings: DistillSettings, progress: Progress, positions: str = "all"
) -> dict[Site, AffineEdit]:
    """Fits edits that bring about in the target what changes in the source.

    Args:
        reading: Of both models.
        settings: Rank and map.
        progress: Who shows progress.
        positions: Tokens at which the edits act.

    Returns:
        Edits by site of the target, in the order of the forward pass.
    """
    maps = fit_switch_maps(reading, settings, progress)
    return edits_through(maps, reading, settings.rank, progress, positions)


def edits_through(
    maps: Mapping[Site, AffineMap],
    reading: SwitchReading,
    rank: int | None,
    progress: Progress,
    positions: str = "all",
) -> dict[Site, AffineEdit]:
    """Fits edits that bring about in the target what changes in the source, sent through maps.

    Args:
        maps: From all of the source's layers to every site of the target.
        reading: Of both models.
        rank: Rank of every edit; None for full maps.
        progress: Who shows progress.
        positions: Tokens at which the edits act.

    Returns:
        Edits by site of the target, in the order of the forward pass.
    """
    train, selection = reading.parts
    fit = FitSettings(rank, parse_positions(positions), batch_size=reading.batch_size)
    wanted = _wanted(train, maps), _wanted(selection, maps)
    return fit_edits(
        reading.target, (train.texts, selection.texts), tuple(maps), wanted, fit, progress
    )


def fit_switch_maps(
    reading: SwitchReading, settings: DistillSettings, progress: Progress
) -> dict[Site, AffineMap]:
    """Fits a map from all of the source's layers to every site of the target.

    Args:
        reading: Of both models.
        settings: Which map.
        progress: Who shows progress.

    Returns:
        A map for every site.
    """
    with progress.stage("fit the maps between the models", 1) as advance:
        maps = _maps(reading, settings)
        advance(1)
    return maps


def switch_map_quality(
    maps: Mapping[Site, AffineMap], n_train: int, held_out: ReadTexts
) -> dict[str, float]:
    """Measures maps on texts that they were not fitted on.

    Args:
        maps: Of every site of the target.
        n_train: How many pairs they were fitted on.
        held_out: Both models over other texts, and over their twins.

    Returns:
        The quality of the one that predicts states worst, and with it `r2_of_differences`: how well
        its linear part predicts what differs between twins, which is what it carries.
    """
    states = _moments_of(*held_out.states())
    differences = difference_moments(*held_out.differences())
    width = states.d_target // len(maps)
    found = []
    for i, fitted in enumerate(maps.values()):
        here = (i * width, (i + 1) * width)
        # What differs is carried without the means.
        linear = AffineMap(fitted.weight, 0 * fitted.source_mean, 0 * fitted.target_mean, "linear")
        carried = held_out_quality(linear, differences.at_target(*here), n_train)
        of_states = held_out_quality(fitted, states.at_target(*here), n_train)
        found.append({**asdict(of_states), "r2_of_differences": carried.r2_held_out})
    return worst_quality(found)


def _maps(reading: SwitchReading, settings: DistillSettings) -> dict[Site, AffineMap]:
    sites, width = tuple(reading.parts[0].own), reading.target.d_model
    if settings.map_method == "identity_map":
        return {site: _nearest_layer(reading, site) for site in sites}
    if settings.map_method == "shuffled_map":
        generator = torch.Generator().manual_seed(settings.seed)
        train, selection = (_shuffled(part, generator) for part in reading.parts)
    elif settings.map_method == "ridge" or reading.differences is None:
        train, selection = reading.states
    else:
        train, selection = map(with_differences, reading.states, reading.differences)
    fitter = RidgeFitter(settings.ridge_strengths)
    return {
        site: fitter.fit(*(m.at_target(i * width, (i + 1) * width) for m in (train, selection)))
        for i, site in enumerate(sites)
    }


def _moments_of(x: Tensor, y: Tensor) -> PairMoments:
    moments = PairMoments(x.shape[1], y.shape[1])
    moments.update(x, y)
    return moments


def _shuffled(part: ReadTexts, generator: torch.Generator) -> PairMoments:
    """Sums what a map would be fitted on, of pairs that do not belong together."""
    x, y = part.states()
    states = _moments_of(x, shuffled_rows(y, generator))
    if not part.twin_pairs:
        return states
    dx, dy = part.differences()
    return with_differences(states, difference_moments(dx, shuffled_differences(dy, generator)))


def _nearest_layer(reading: SwitchReading, site: Site) -> AffineMap:
    source, target = reading.source, reading.target
    n_sites = len(sites_read(source))
    plain = identity_map(source.d_model, target.d_model)
    if site.stream not in {Stream.RESID_POST, Stream.RESID_PRE}:
        raise ConfigError(f"the identity map knows states of the stream, not {site}: leave it out")
    # What enters a block has left the one before it.
    depth = (site.layer + (site.stream is Stream.RESID_POST)) / target.n_layers
    nearest = round(depth * (n_sites - 1))
    weight = torch.zeros(n_sites * source.d_model, target.d_model)
    weight[nearest * source.d_model : (nearest + 1) * source.d_model] = plain.weight
    return AffineMap(weight, torch.zeros(len(weight)), torch.zeros(target.d_model), "identity_map")


def _wanted(part: ReadTexts, maps: Mapping[Site, AffineMap]) -> Wanted:
    """Returns the target's own states plus what changes in the source, mapped."""

    def wanted(site: Site, indices: tuple[int, ...], batch: TokenBatch) -> tuple[Tensor, Tensor]:
        states = torch.zeros(*batch.token_ids.shape, maps[site].d_target)
        is_known = torch.zeros_like(batch.is_real)
        for row, index in enumerate(indices):
            theirs = part.pairs[index][1]
            states[row, theirs] = part.own[site][index][theirs] + maps[site].linear(
                part.change(index)
            )
            is_known[row, theirs] = True
        return states, is_known

    return wanted
