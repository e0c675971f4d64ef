"""Tries a carried direction at every place: the sweep that rules for layers are held against."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from isthmus.core.progress import Progress
from isthmus.core.texts import EncodedText
from isthmus.directions.direction import Direction
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores, Bench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.layer_evidence import LayerPlace, Readings
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import paired_moments
from isthmus.workflows.rule_choice import N_ASKED, brief_effects
from isthmus.workflows.selection import Scored, Selector, make_selector, usable_strengths
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import TwinSplits, map_texts, position_candidates, read_splits


@dataclass(frozen=True)
class TriedPlace:
    """What a carried direction does at one place.

    Attributes:
        chosen: The strength that validation chose, with its effect and damage there.
        is_usable: Whether that strength keeps the budget of damage.
        test: Losses on test questions at that strength.
    """

    chosen: Scored
    is_usable: bool
    test: ArmScores

    def effects(self, rows: Int[np.ndarray, "resample drawn"]) -> Float[np.ndarray, " resample"]:
        """Returns swap on drawn test questions; 0 where no strength keeps the budget."""
        if not self.is_usable:
            return np.zeros(len(rows))
        swaps: Float[np.ndarray, " resample"] = np.minimum(
            self.test.removal.ratios(rows), self.test.induction.ratios(rows)
        )
        return swaps

    @property
    def promise(self) -> float:
        """The effect on validation, 0 where no strength keeps the budget."""
        return self.chosen.effect if self.is_usable else 0.0


def open_readings(config: RunConfig, progress: Progress) -> tuple[Readings, TwinSplits]:
    """Loads both models, reads them over the map's texts and learns the source's directions.

    Args:
        config: A run with one target.
        progress: Who shows progress.

    Returns:
        What places are scored from, and the questions.

    Raises:
        IsthmusError: If a model, a site, positions or questions cannot be used.
    """
    source, target = (
        load_language_model(name, dtype=config.dtype, device=config.device)
        for name in (config.source, config.targets[0])
    )
    splits = read_splits(config)
    sites = thinned_sites(source, config.source_sites)
    positions, _ = position_candidates((source, target), config, splits.train[0])
    texts = map_texts(splits.train)
    encoded = [
        encode_prompts(lm.tokenizer, [p for p, _ in texts], answers=[a for _, a in texts])
        for lm in (source, target)
    ]
    moments = paired_moments(
        source,
        target,
        (encoded[0], encoded[1]),
        (sites, target.sites(config.target_sites)),
        pairing=config.pairing,
        batch_size=config.batch_size,
        progress=progress,
    )
    directions = {
        one: learn_twin_direction(source, splits.train, sites, one, config) for one in positions
    }
    return Readings(source, target, moments, directions, config), splits


def arm_at(place: LayerPlace, carried: Direction, config: RunConfig) -> Arm:
    """Returns the arm of a carried direction at a place, at strength 1."""
    return Arm(
        "transferred",
        place.target_site,
        place.positions,
        config.edit,
        1.0,
        carried,
        map_method="ridge",
        source_sites=", ".join(map(str, place.source_sites)),
        seed=config.seed,
    )


def try_places(
    readings: Readings,
    splits: TwinSplits,
    carried: Mapping[LayerPlace, Direction],
    progress: Progress,
) -> dict[LayerPlace, TriedPlace]:
    """Chooses every place's strength on validation and measures it on test.

    Args:
        readings: The target.
        splits: Questions.
        carried: The direction at every place.
        progress: Who shows progress.

    Returns:
        What it does, by place.
    """
    config, target = readings.config, readings.target
    selector = selector_of(readings, splits, progress)
    test = Bench(target, splits.test, config)
    tried = {}
    with progress.stage("try every place", len(carried)) as advance:
        for place, direction in carried.items():
            chosen = selector.choose_strength(arm_at(place, direction, config))
            is_usable = chosen.damage <= config.max_benign_kl
            tried[place] = TriedPlace(chosen, is_usable, test.score(chosen.arm))
            advance(1)
    return tried


def try_briefly(
    readings: Readings,
    splits: TwinSplits,
    carried: Mapping[LayerPlace, Direction],
    progress: Progress,
) -> dict[LayerPlace, float]:
    """Tries every place on few questions at the direction's own length.

    Args:
        readings: The target.
        splits: Questions; the first `N_ASKED` of validation are asked.
        carried: The direction at every place.
        progress: Who shows progress.

    Returns:
        Swap by place; NaN where it is undefined.
    """
    config = readings.config
    bench = Bench(readings.target, splits.validation[:N_ASKED], config)
    arms = [arm_at(place, direction, config) for place, direction in carried.items()]
    with progress.stage("try every place briefly", len(arms)) as advance:
        effects = brief_effects(bench, arms)
        advance(len(arms))
    return dict(zip(carried, effects, strict=True))


def selector_of(readings: Readings, splits: TwinSplits, progress: Progress) -> Selector:
    """Returns what chooses strengths on the validation questions of the target."""
    config = readings.config
    names = readings.source.identity.name, readings.target.identity.name
    validation = Bench(readings.target, splits.validation, config)
    return make_selector(validation, Recorder(config, *names, "test"), progress)


@dataclass(frozen=True)
class Costs:
    """Tokens that the target reads, beyond the texts that every map is fitted on.

    Attributes:
        per_place: To choose the strength at one place.
        scores: To score all places by spaces and contrasts.
        attribution: To score them by gradients; a pass backwards counts twice.
        trial: To try one place briefly.
    """

    per_place: int
    scores: int
    attribution: int
    trial: int

    def of_rule(self, names: Collection[str], n_places: int, n_tried: int = 1) -> float:
        """Returns the cost of a rule and of choosing strengths, in sweeps.

        Args:
            names: Scores that it looks at.
            n_places: How many places a sweep tries.
            n_tried: At how many the rule has strengths chosen.

        Returns:
            Tokens of the rule over tokens of the sweep.
        """
        own = {"attribution": self.attribution, "trial": n_places * self.trial}
        spent = n_tried * self.per_place + sum(own[name] for name in own if name in names)
        spent += self.scores if set(names) - set(own) else 0
        return spent / (n_places * self.per_place)


def costs_of(selector: Selector, n_positions: int) -> Costs:
    """Counts tokens.

    Args:
        selector: Whose benches choose strengths.
        n_positions: How many kinds of positions are scored; each is a pass with gradients.

    Returns:
        Tokens per place, for scores, for attribution and for a brief trial.
    """
    config = selector.config
    coarse, fine = selector.coarse.encoded, selector.fine.encoded
    asked = [*fine.triggered[:N_ASKED], *fine.clean_bad[:N_ASKED]]
    n_strengths = len(usable_strengths(config.edit, config.strengths))
    scored = _tokens(coarse.triggered) + _tokens(coarse.clean_bad) + _tokens(coarse.benign)
    return Costs(
        per_place=n_strengths * scored + _tokens(fine.benign),
        scores=sum(text.n_prompt for text in (*fine.triggered, *fine.clean)),
        attribution=3 * n_positions * (_tokens(coarse.triggered) + _tokens(coarse.clean_bad)),
        trial=_tokens(asked),
    )


def _tokens(texts: Sequence[EncodedText]) -> int:
    return sum(len(text) for text in texts)
