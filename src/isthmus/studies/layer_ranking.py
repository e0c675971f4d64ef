"""Which layers: rules that rank (source layer, target layer, positions) without trying them.

1. The source's direction is carried to every place through that place's own ridge map: from every
   single source layer, and from all of them together, to every target layer.
2. The sweep chooses every place's strength on validation and measures swap on test questions; a
   place where no strength keeps the damage budget counts 0.
3. Every rule ranks the same places by scores that it has before the sweep; one of them, `trial`, is
   a swap on few questions at one strength. Reported are its rank correlation with the sweep, the
   regret of its first choice and of three, and its cost.
4. Baselines: the middle layers, the first, the last, a random choice, and the sweep's own choice.

Intervals come from a bootstrap over test questions, those of one content together, the same
resamples for every rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from isthmus.core.progress import Progress, SilentProgress
from isthmus.evaluation.intervals import Interval, resampled
from isthmus.evaluation.layer_choice import (
    DEFAULT_RULE,
    mean_ranks,
    rank_correlation,
    regret_of,
    shortlist_regret,
)
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.study_plots import NumberGrid, number_grids
from isthmus.studies.layer_sweeping import (
    Costs,
    TriedPlace,
    costs_of,
    open_readings,
    selector_of,
    try_briefly,
    try_places,
)
from isthmus.studies.result import StudyResult
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.layer_evidence import (
    LayerPlace,
    attribute_places,
    carry_to,
    score_places,
)
from isthmus.workflows.measuring import Recorder

NAME = "layer_ranking"

SCOPES: Mapping[str, Callable[[LayerPlace], bool]] = {
    "one source layer": lambda place: len(place.source_sites) == 1,
    "all source layers": lambda place: len(place.source_sites) > 1,
    "either": lambda _place: True,
}
"""Which places a rule chooses among, as the `source_site` of what is reported of it."""

ALL_SPACES = ("map_r2", "cka_debiased", "contrast_explained", "carried_size")
"""A rule of likeness alone, joined before anything was measured."""

PULL_AND_DEPTH = ("attribution", "blocks_above")
"""The rule that did best on the first crossing looked at, and not on the others."""

PULL_AND_TRIAL = ("attribution", "trial")
"""Gradients and a brief trial, joined."""

_N_TRIED = 3
_FEW = {
    "n_train": 240,
    "n_validation": 64,
    "n_test": 128,
    "strengths": [0.5, 0.75, 1.0, 1.5, 2.0],
    "maps": ["ridge"],
}

Scores = Mapping[LayerPlace, Mapping[str, float]]
Numbers = Float[np.ndarray, " place"]
Resampled = Float[np.ndarray, "resample place"]


def rank_layers(
    source: str,
    target: str,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    n_resamples: int = 1000,
    progress: Progress | None = None,
) -> StudyResult:
    """Holds rules for layers against a sweep of every place in one crossing.

    Args:
        source: Model the direction is learned in.
        target: Model it is carried to.
        settings: Other fields of `RunConfig`: task, questions, triggers, sizes, strengths, sites.
        seed: Seed of everything random.
        n_resamples: Bootstrap resamples of the test questions.
        progress: Who shows progress.

    Returns:
        Swap of every place, every score of it, what each rule is worth and costs, and heat maps of
        the sweep beside the default rule's ranks.

    Raises:
        IsthmusError: If a model, a site, positions or questions cannot be used.
    """
    shown = progress or SilentProgress()
    given = {**_FEW, **(settings or {}), "source": source, "target": target, "seed": seed}
    config = make_config(given)
    readings, splits = open_readings(config, shown)
    with shown.stage("score every place"):
        maps = readings.maps(readings.places())
        carried = carry_to(readings, maps)
        spaces = score_places(readings, splits.validation, maps)
        selector = selector_of(readings, splits, shown)
        pulls = attribute_places(readings, selector.coarse.twins, carried)
        trials = try_briefly(readings, splits, carried, shown)
    scores = {
        place: {**one, "attribution": pulls[place], "trial": trials[place]}
        for place, one in spaces.items()
    }
    tried = try_places(readings, splits, carried, shown)
    names = (readings.source.identity.name, readings.target.identity.name)
    recorder = Recorder(config, *names, "test", n_resamples)
    costs = costs_of(selector, len(readings.directions))
    reports = report_rules(scores, tried, costs, n_resamples, seed)
    rows = [
        *(one for place in scores for one in _of_place(recorder, scores[place], tried[place])),
        *(row for one in reports for row in _of_report(recorder, one, len(splits.test))),
    ]
    task = f"{NAME}_{config.task}"
    measured = tuple(replace(row, task=task) for row in rows)
    return StudyResult(task, measured, _notes(config, tried, reports), _figures(measured, config))


@dataclass(frozen=True)
class RuleReport:
    """What one rule is worth among some places.

    Attributes:
        rule: Its name: a score, several joined by `+`, or a baseline.
        scope: One of `SCOPES`.
        values: Intervals by metric; NaN ends where a number has none.
    """

    rule: str
    scope: str
    values: Mapping[str, Interval]


def report_rules(
    scores: Scores,
    tried: Mapping[LayerPlace, TriedPlace],
    costs: Costs,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[RuleReport]:
    """Holds every score, the joined rules and the baselines against the sweep, in every scope.

    Args:
        scores: Scores of every place.
        tried: What the sweep found there.
        costs: What scores and sweep cost.
        n_resamples: Bootstrap resamples of the test questions.
        seed: Which resamples.

    Returns:
        One report per scope and rule; scopes without two places are left out.
    """
    effects = resampled_effects(list(tried.values()), n_resamples, seed)
    every = list(tried)
    promises = np.array([one.promise for one in tried.values()])
    reports = []
    for scope, holds in SCOPES.items():
        inside = [i for i, place in enumerate(every) if holds(place)]
        if len(inside) < 2:
            continue
        places = [every[i] for i in inside]
        here, hoped = effects[:, inside], promises[inside]
        for rule, names in rules_of(scores[places[0]]).items():
            joined = mean_ranks(
                *(np.array([scores[place][name] for place in places]) for name in names)
            )
            values = _worth(joined, here)
            values["regret_of_three"] = _interval(shortlist_regret(joined, hoped, here, _N_TRIED))
            for metric, n in (("relative_cost", 1), ("relative_cost_of_three", _N_TRIED)):
                cost = costs.of_rule(names, len(inside), n)
                values[metric] = Interval(cost, np.nan, np.nan)
            reports.append(RuleReport(rule, scope, values))
        reports += [
            RuleReport(name, scope, _worth(column, here))
            for name, column in {**_baselines(places, every), "the sweep": hoped}.items()
        ]
    return reports


def rules_of(names: Sequence[str] | Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Returns every rule by its name: each score alone, and the joined ones."""
    joined = (DEFAULT_RULE, PULL_AND_TRIAL, PULL_AND_DEPTH, ALL_SPACES)
    return {**{name: (name,) for name in names}, **{" + ".join(one): one for one in joined}}


def resampled_effects(tried: Sequence[TriedPlace], n_resamples: int, seed: int) -> Resampled:
    """Returns the effect of every place on the test questions as they are, then on resamples.

    Args:
        tried: The places.
        n_resamples: How many resamples, the same for every place.
        seed: Which.

    Returns:
        One row more than resamples.
    """
    asked = tried[0].test.removal
    return np.stack(
        [
            resampled(
                one.effects,
                len(asked),
                contents=asked.contents,
                n_resamples=n_resamples,
                seed=seed,
            )
            for one in tried
        ],
        axis=1,
    )


def _worth(scores: Numbers, effects: Resampled) -> dict[str, Interval]:
    return {
        "rank_correlation": _interval(rank_correlation(scores, effects)),
        "regret": _interval(regret_of(scores, effects)),
    }


def _interval(values: Float[np.ndarray, " resample"]) -> Interval:
    resampled = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(resampled):
        return Interval.undefined()
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(float(values[0]), float(low), float(high))


def _baselines(places: Sequence[LayerPlace], every: Sequence[LayerPlace]) -> dict[str, Numbers]:
    """Returns rules that know nothing of the models but how deep they are."""
    deepest = max(place.target_site.layer for place in every)
    deepest_there = max(site.layer for place in every for site in place.source_sites)
    depths = np.array([place.target_site.layer / max(1, deepest) for place in places])
    from_middle = np.array(
        [
            0.0
            if len(place.source_sites) > 1
            else abs(place.source_sites[0].layer / max(1, deepest_there) - 0.5)
            for place in places
        ]
    )
    return {
        "the middle layers": -np.abs(depths - 0.5) - from_middle,
        "the first layer": -depths,
        "the last layer": depths,
        "a random choice": np.zeros(len(places)),
    }


def _of_place(
    recorder: Recorder, scores: Mapping[str, float], tried: TriedPlace
) -> list[Measurement]:
    arm = tried.chosen.arm
    swaps = [m for m in recorder.effects(arm, tried.test) if m.metric == "swap"]
    n = len(tried.test.removal)
    said = [
        replace(recorder.record(arm, "layer_score", value, n), edit=name, split="validation")
        for name, value in scores.items()
    ]
    return [*swaps, *said]


def _of_report(recorder: Recorder, report: RuleReport, n: int) -> list[Measurement]:
    blank = Measurement(
        task=NAME,
        source=recorder.source,
        target=recorder.target,
        source_site=report.scope,
        map="ridge",
        condition="transferred",
        edit=report.rule,
        split="test",
        metric="regret",
        value=None,
        n=n,
        seed=recorder.config.seed,
    )
    rows = []
    for metric, one in report.values.items():
        if metric == "relative_cost_of_three":
            continue
        has_ends = one.is_defined and not np.isnan(one.low)
        low, high = (one.low, one.high) if has_ends else (None, None)
        rows.append(replace(blank, metric=metric, value=one.value, ci_low=low, ci_high=high))
    return rows


def _notes(
    config: RunConfig,
    tried: Mapping[LayerPlace, TriedPlace],
    reports: Sequence[RuleReport],
) -> tuple[str, ...]:
    notes = []
    beyond = sum(not one.is_usable for one in tried.values())
    if beyond:
        notes.append(
            f"{config.targets[0]}: at {beyond} of {len(tried)} places no strength keeps the damage "
            "budget on validation; they count as swap 0"
        )
    default = " + ".join(DEFAULT_RULE)
    for one in reports:
        if one.rule == default:
            values = {name: interval.value for name, interval in one.values.items()}
            notes.append(
                f"{config.task}, {config.targets[0]}, {one.scope}: {default} regrets "
                f"{values['regret']:.2f} at {values['relative_cost']:.2f} of the sweep, "
                f"{values['regret_of_three']:.2f} with three places tried at "
                f"{values['relative_cost_of_three']:.2f}"
            )
    return tuple(notes)


def _figures(rows: Sequence[Measurement], config: RunConfig) -> dict[str, str]:
    """Draws the sweep beside the first score of the default rule, per kind of positions."""
    swaps = [m for m in rows if m.metric == "swap"]
    scored = [m for m in rows if (m.metric, m.edit) == ("layer_score", DEFAULT_RULE[0])]
    grids = []
    for positions in dict.fromkeys(m.positions for m in swaps):
        for title, some in (("swap", swaps), (DEFAULT_RULE[0], scored)):
            here = [m for m in some if m.positions == positions]
            cells = {(_short(m.source_site), _short(m.target_site)): m for m in here}
            grids.append(
                NumberGrid(
                    f"{title} at {positions}, source layer by target layer",
                    tuple(dict.fromkeys(row for row, _ in cells)),
                    tuple(dict.fromkeys(column for _, column in cells)),
                    cells,
                )
            )
    title = f"Tried and foretold, {config.task}, {config.source} to {config.targets[0]}"
    drawn = number_grids(grids, f"layers-{config.task}", title)
    return {} if drawn is None else {title: drawn}


def _short(site: str | None) -> str:
    if site is None or ", " in site:
        return "all"
    return site.partition("[")[2].rstrip("]") or site
