"""Steers at several layers at once: every layer with its own direction, or one vector copied.

1. The direction is learned at every site of the source and natively at every site of the target.
2. One ridge map per target site carries it there (`add at every layer`); the paper maps one vector
   and adds it at every layer (`add one vector at every layer`). Which one is chosen on validation.
3. Strengths are chosen as a run chooses them: on validation, within both budgets of damage, between
   those given where that helps, and confirmed on the benign prompts of more questions.
4. Every strength is measured on validation, the chosen one once on test, beside random directions
   at the strength of the carried ones.

Source: arXiv 2503.04429, appendix I, which copies one mapped vector to all layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from isthmus.carrying.chains import at_several_sites
from isthmus.carrying.directions import carry_direction
from isthmus.carrying.scaling import random_direction_like
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction, SiteDirection
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.study_plots import Curve, Panel, condition_curve, curve_panels
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.confirming import confirmed
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import paired_moments
from isthmus.workflows.selection import Scored, best_within, make_selector
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import map_texts, read_splits

EVERY_LAYER, COPIED = "add at every layer", "add one vector at every layer"
"""What is done, as `edit` in `results.jsonl`; while one vector is looked for, its layer follows."""

_PANELS = {
    "swap": "Swap",
    "behaviour_rate": "Behaviour rate",
    "benign_accuracy": "Right answers, benign prompts",
}
_VARIANTS = {EVERY_LAYER: "each layer's own", COPIED: "one copied"}


def study_multi_layer(
    config: RunConfig, *, progress: Progress | None = None, positions: str = "last:3"
) -> StudyResult:
    """Compares steering at every layer with one vector copied to all, native and carried.

    Args:
        config: A run with one target; its strengths are divided by the number of layers.
        progress: Who shows progress.
        positions: Where vectors are added.

    Returns:
        Swap, rates and damage for native and carried directions at every layer, and for one vector
        of either that is copied to all: on validation at every strength, on test questions at the
        chosen one, there with the untouched model and random directions.
    """
    shown = progress or SilentProgress()
    source, target = (
        load_language_model(m, dtype=config.dtype, device=config.device)
        for m in (config.source, config.targets[0])
    )
    splits = read_splits(config)
    sites = target.sites("all")
    directions = {
        "native": learn_twin_direction(target, splits.train, sites, positions, config),
        "transferred": _carried(source, target, config, positions, shown),
    }
    room = _Room((source, target), config, positions, shown)
    chosen: list[tuple[str, Arm]] = []
    for condition, direction in directions.items():
        arm = _arm(condition, direction, positions)
        copied = room.best_copy(arm, sites)
        chosen += [
            (EVERY_LAYER, room.choose(arm, EVERY_LAYER)),
            (COPIED, room.choose(copied, COPIED)),
        ]
    like = {edit: arm for edit, arm in chosen if arm.condition == "transferred"}
    random = room.random(like, sites)
    room.doses(random[0][1], EVERY_LAYER)
    rows = room.tested([*chosen, *random])
    measured = (*room.measured, *rows)
    notes = (*room.notes, *_notes(rows, target.identity.name))
    return StudyResult(f"{config.task}_multi_layer", measured, notes, _figures(measured))


class _Room:
    """The target ready to be asked, and what was measured on validation so far.

    Args:
        models: Source and target.
        config: The run.
        positions: Where vectors are added.
        progress: Who shows progress.
    """

    def __init__(
        self,
        models: tuple[LanguageModel, LanguageModel],
        config: RunConfig,
        positions: str,
        progress: Progress,
    ) -> None:
        self.target, self.positions, self.progress = models[1], positions, progress
        n = self.target.n_layers
        strengths = sorted({s / n for s in (*config.strengths, n / 2)})
        self.config = config.model_copy(update={"strengths": tuple(strengths)})
        self.splits = read_splits(config)
        names = (models[0].identity.name, self.target.identity.name)
        self.test_recorder = Recorder(self.config, *names, "test")
        bench = Bench(self.target, self.splits.validation, self.config)
        self.selector = make_selector(bench, self.test_recorder, progress)
        self.measured: list[Measurement] = []
        self.notes: list[str] = []

    def best_copy(self, arm: Arm, sites: tuple[Site, ...]) -> Arm:
        """Returns an arm with the vector of one layer copied to all, which validation chose.

        Vectors are compared at two strengths on half of the questions, as places of a run are.
        """
        strengths = self.selector.strengths
        tried = sorted({strengths[len(strengths) // 3], strengths[-1 - len(strengths) // 3]})
        found: dict[Site, Scored] = {}
        for site in sites:
            copy = replace(arm, direction=_copied(_direction_of(arm), site, sites))
            first = len(self.selector.measured)
            doses = self.selector.doses(self.selector.coarse, copy, tried)
            found[site] = best_within(doses, self.config)
            self._keep(first, f"{COPIED}: {site}")
        best = best_within(list(found.values()), self.config)
        origin = next(site for site, one in found.items() if one is best)
        self.notes.append(f"{arm.condition}: copied to all layers is the vector of {origin}")
        return best.arm

    def choose(self, arm: Arm, edit: str) -> Arm:
        """Returns an arm at its strength; what every strength does is kept."""
        wide = Bench(self.target, self.splits.confirming or self.splits.validation, self.config)
        first = len(self.selector.measured)
        doses = self.selector.doses(self.selector.fine, arm, self.selector.strengths)
        found = self.selector.refine(best_within(doses, self.config))
        chosen = confirmed(self.selector, wide, found).arm
        self._keep(first, edit)
        self._complete(arm, edit)
        self.notes.append(f"{arm.condition}, {edit}: strength {chosen.strength:g}")
        return chosen

    def random(self, like: Mapping[str, Arm], sites: tuple[Site, ...]) -> list[tuple[str, Arm]]:
        """Returns random directions for either edit, each of its arm's norms, draw by draw."""
        drawn = []
        for number in range(self.config.n_random):
            seed = self.config.seed + number
            for edit, arm in like.items():
                generator = torch.Generator().manual_seed(seed)
                one = random_direction_like(_direction_of(arm), generator)
                one = _copied(one, sites[0], sites) if edit == COPIED else one
                control = replace(_arm("random", one, self.positions), seed=seed)
                drawn.append((edit, replace(control, strength=arm.strength)))
        return drawn

    def doses(self, arm: Arm, edit: str) -> None:
        """Measures an arm at every strength on validation without choosing."""
        first = len(self.selector.measured)
        self.selector.doses(self.selector.fine, arm, self.selector.strengths)
        self._keep(first, edit)
        self._complete(arm, edit)

    def tested(self, arms: Sequence[tuple[str, Arm]]) -> list[Measurement]:
        """Measures the untouched model and arms on test."""
        bench, recorder = Bench(self.target, self.splits.test, self.config), self.test_recorder
        rows = self._asked(bench, recorder, Arm("none"))
        with self.progress.stage("test every layer", len(arms)) as advance:
            for edit, arm in arms:
                found = [
                    *recorder.effects(arm, bench.score(arm)),
                    recorder.divergence(arm, bench.damage(arm), bench.benign_turns),
                    *self._asked(bench, recorder, arm),
                ]
                rows += self._named(found, edit)
                advance(1)
        return rows

    def _complete(self, arm: Arm, edit: str) -> None:
        """Lets the target answer validation prompts at every strength."""
        fine, recorder = self.selector.fine, self.selector.recorder
        label = f"answers at every strength: {arm.condition}"
        with self.progress.stage(label, len(self.selector.strengths)) as advance:
            for strength in self.selector.strengths:
                asked = self._asked(fine, recorder, arm.at(strength))
                self.measured += self._named(asked, edit)
                advance(1)

    def _keep(self, first: int, edit: str) -> None:
        """Keeps what the selector measured from a place on, every number once."""
        rows = {(m.strength, m.metric): m for m in self.selector.measured[first:]}
        self.measured += self._named(list(rows.values()), edit)

    def _named(self, rows: Sequence[Measurement], edit: str) -> list[Measurement]:
        where = f"resid_post[0..{self.target.n_layers - 1}]"
        return [replace(m, edit=edit, target_site=where) for m in rows]

    def _asked(self, bench: Bench, recorder: Recorder, arm: Arm) -> list[Measurement]:
        return [
            *recorder.behaviour(arm, bench.complete(arm), bench.asked(arm)),
            *recorder.benign(arm, bench.complete_benign(arm), bench.benign_turns),
        ]


def _arm(condition: str, direction: Direction, positions: str) -> Arm:
    used_map = "ridge" if condition == "transferred" else None
    return Arm(condition, None, positions, "add", 1.0, direction, used_map)


def _direction_of(arm: Arm) -> Direction:
    if arm.direction is None:
        raise ValueError(f"the {arm.condition} arm has no direction")
    return arm.direction


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
    carried: list[Direction] = []
    for site, parts in moments.by_site.items():
        ends = MapEnds(source.identity, target.identity, source_sites, site)
        carried.append(carry_direction(learned, ends.fitted(*fit_closed_form("ridge", parts))))
    return at_several_sites(carried)


def _copied(carried: Direction, origin: Site, sites: tuple[Site, ...]) -> Direction:
    copies: Mapping[Site, SiteDirection] = dict.fromkeys(sites, carried.at(origin))
    return carried.with_vectors(copies)


def _notes(tested: Sequence[Measurement], target: str) -> list[str]:
    def of(condition: str, edit: str | None, metric: str) -> str:
        wanted = (condition, edit, metric)
        return next(
            "undefined" if m.value is None else f"{m.value:.3f}"
            for m in tested
            if (m.condition, m.edit, m.metric) == wanted
        )

    untouched = of("none", None, "benign_accuracy")
    return [
        f"{target}, {condition}, {edit}: swap {of(condition, edit, 'swap')}, behaviour in "
        f"{of(condition, edit, 'behaviour_rate')} of answers, right answers on benign prompts "
        f"{of(condition, edit, 'benign_accuracy')} (untouched {untouched})"
        for condition in ("native", "transferred")
        for edit in (EVERY_LAYER, COPIED)
    ]


def _figures(measured: Sequence[Measurement]) -> dict[str, str]:
    """Draws the dose-response: what every strength does on validation."""
    doses = [m for m in measured if m.split == "validation" and m.edit in _VARIANTS]
    target = doses[0].target
    panels = []
    for metric, heading in _PANELS.items():
        points: dict[tuple[str, str], list[tuple[float, Measurement]]] = {}
        for m in doses:
            if m.metric == metric and m.edit is not None and m.strength is not None:
                points.setdefault((m.condition, m.edit), []).append((m.strength, m))
        curves: tuple[Curve, ...] = tuple(
            condition_curve(condition, of_arm, _VARIANTS[edit], is_dashed=edit == COPIED)
            for (condition, edit), of_arm in points.items()
        )
        panels.append(Panel(heading, "strength per layer", curves))
    title = f"Every strength at every layer of {target}"
    svg = curve_panels(panels, f"layers-{target}", title)
    return {} if svg is None else {title: svg}
