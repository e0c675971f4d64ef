"""Steers at several layers at once: every layer with its own carried direction, or one copied.

1. The direction is learned at every site of the source and natively at every site of the target.
2. One ridge map per target site carries it there (`each layer`); the paper maps one vector and adds
   it at every layer (`copied`).
3. Each arm's strength is chosen on validation within the damage budget and measured on test.

Source: arXiv 2503.04429, appendix I, which copies one mapped vector to all layers.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from isthmus.carrying.directions import carry_direction
from isthmus.carrying.scaling import random_direction_like
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction, SiteDirection
from isthmus.evaluation.measurements import Measurement
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import paired_moments
from isthmus.workflows.selection import Scored, make_selector
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import map_texts, read_splits

EVERY_LAYER, COPIED = "add at every layer", "add one vector at every layer"


def study_multi_layer(
    config: RunConfig, *, progress: Progress | None = None, positions: str = "last:3"
) -> StudyResult:
    """Compares steering at every layer with one vector copied to all, native and carried.

    Args:
        config: A run with one target; its strengths are divided by the number of layers.
        progress: Who shows progress.
        positions: Where vectors are added.

    Returns:
        Swap, rates and damage on test questions for native and carried directions at every layer,
        the carried vector of each layer copied to all (the best of them on validation), and random
        directions at every layer.
    """
    shown = progress or SilentProgress()
    source, target = (
        load_language_model(m, dtype=config.dtype, device=config.device)
        for m in (config.source, config.targets[0])
    )
    splits = read_splits(config)
    sites = target.sites("all")
    natives = learn_twin_direction(target, splits.train, sites, positions, config)
    carried = _carried(source, target, config, positions, shown)
    n_layers = len(sites)
    config = config.model_copy(
        update={"strengths": tuple(s / n_layers for s in (*config.strengths, n_layers / 2))}
    )
    names = (source.identity.name, target.identity.name)
    recorder = Recorder(config, *names, "test")
    selector = make_selector(Bench(target, splits.validation, config), recorder, shown)
    copies = [
        selector.choose_strength(_arm("transferred", _copied(carried, site, sites), positions))
        for site in sites
    ]
    random = random_direction_like(carried, torch.Generator().manual_seed(config.seed))
    arms = {
        EVERY_LAYER: [
            selector.choose_strength(_arm(condition, direction, positions)).arm
            for condition, direction in (
                ("native", natives),
                ("transferred", carried),
                ("random", random),
            )
        ],
        COPIED: [max(copies, key=_effect).arm],
    }
    test = Bench(target, splits.test, config)
    measured = [
        replace(m, edit=edit, target_site=f"resid_post[0..{n_layers - 1}]")
        for edit, chosen in arms.items()
        for arm in chosen
        for m in _measured(test, recorder, arm)
    ]
    return StudyResult(f"{config.task}_multi_layer", tuple(measured), tuple(_notes(measured)))


def _arm(condition: str, direction: Direction, positions: str) -> Arm:
    used_map = "ridge" if condition == "transferred" else None
    return Arm(condition, None, positions, "add", 1.0, direction, used_map)


def _effect(scored: Scored) -> float:
    return -1.0 if math.isnan(scored.effect) else scored.effect


def _carried(
    source: LanguageModel,
    target: LanguageModel,
    config: RunConfig,
    positions: str,
    progress: Progress,
) -> Direction:
    """Carries the source's direction to every site of the target, each through its own map."""
    twins = read_splits(config).train
    texts = map_texts(twins)
    encoded = [
        encode_prompts(lm.tokenizer, [p for p, _ in texts], answers=[a for _, a in texts])
        for lm in (source, target)
    ]
    source_sites = thinned_sites(source, config.source_sites)
    moments = paired_moments(
        source,
        target,
        (encoded[0], encoded[1]),
        (source_sites, target.sites("all")),
        pairing=config.pairing,
        progress=progress,
    )
    learned = learn_twin_direction(source, twins, source_sites, positions, config)
    by_site: dict[Site, SiteDirection] = {}
    carried: list[Direction] = []
    for site, parts in moments.by_site.items():
        ends = MapEnds(source.identity, target.identity, source_sites, site)
        carried.append(carry_direction(learned, ends.fitted(*fit_closed_form("ridge", parts))))
        by_site[site] = carried[-1].at(site)
    return replace(carried[0], by_site=by_site)


def _copied(carried: Direction, origin: Site, sites: tuple[Site, ...]) -> Direction:
    copies: Mapping[Site, SiteDirection] = dict.fromkeys(sites, carried.at(origin))
    return replace(carried, by_site=copies)


def _measured(bench: Bench, recorder: Recorder, arm: Arm) -> list[Measurement]:
    turns = bench.benign_turns
    return [
        *recorder.effects(arm, bench.score(arm)),
        recorder.divergence(arm, bench.damage(arm)),
        *recorder.behaviour(arm, bench.complete(arm), bench.asked(arm)),
        *recorder.benign(arm, bench.complete_benign(arm), turns),
    ]


def _notes(measured: list[Measurement]) -> list[str]:
    swaps = {(m.condition, m.edit): m.value for m in measured if m.metric == "swap"}
    each, copied = swaps[("transferred", EVERY_LAYER)], swaps[("transferred", COPIED)]
    return [
        f"carried to every layer through its own map: swap {each or 0:.2f}",
        f"one carried vector copied to all layers, as the paper does: swap {copied or 0:.2f}",
    ]
