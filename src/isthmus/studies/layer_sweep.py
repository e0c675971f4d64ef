"""Where a direction steers: every layer in turn with the native direction, and every strength.

1. The direction is learned at every layer twice: from one pair of twins, as in the paper's sweep
   (activation addition at a fixed strength), and as the mean difference over training questions.
2. The strength of the mean difference is chosen on validation, layer by layer.
3. Both rules for a layer are applied on validation: the paper's, the last layer that steers
   strongly, and this project's, the last one as good as the best by swap.
4. Everything is measured on test questions beside a random direction of equal norm.

Source: arXiv 2503.04429, table 3 and figure 4.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from isthmus.carrying.scaling import random_direction_like
from isthmus.core.errors import ConfigError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import GivenSites, Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.models.batching import ignore
from isthmus.models.changes import BenignChange
from isthmus.models.language_model import load_language_model
from isthmus.studies.result import StudyResult
from isthmus.studies.sweep_figures import layer_figures, strength_figures
from isthmus.studies.trigger_study import TriggerStudy, have_triggers, open_study
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores, Bench
from isthmus.workflows.crossing import Crossing
from isthmus.workflows.measuring import Recorder, point_effect
from isthmus.workflows.selection import Cell, last_as_good, make_selector
from isthmus.workflows.twin_directions import at_one_site, learn_twin_direction

NAME = "layer_sweep"
STRENGTHS = "strength_sweep"

ACT_ADD = "act_add"
"""The `edit` of the paper's variant: one pair of twins, added `ACT_ADD_STRENGTH` times."""

ACT_ADD_STRENGTH = 5.0

STRONGLY_STEERABLE = 0.8
"""Steering success that counts as strong; the paper takes layer 13 at 80 % and not 14 at 34 %."""

_SIDE_BY_SIDE = 8
"""Arms that go through the model in one batch."""

_FEW = {"n_train": 240, "n_validation": 64, "n_test": 96, "n_random": 2}


def sweep_layers(
    model: str,
    *,
    sites: GivenSites = "all",
    positions: tuple[str, ...] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures how well the native direction steers at every layer.

    Steering success is 1 - `behaviour_rate`. `edit` tells the variants apart: `act_add` is one pair
    of twins at strength 5, `add` the mean difference at the strength that validation chose.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        sites: `all`, or sites such as `resid_post[3]`, `3`, `0.6`.
        positions: Which tokens are edited, one sweep for each; the trigger, where there is one, and
            the last three when not given.
        settings: Other fields of `RunConfig`: questions, triggers, sizes of splits, strengths.
        seed: Seed of everything random; it also decides which pair of twins is the one.
        progress: Who shows progress.

    Returns:
        Rates, accuracy, recovery, swap and damage by layer with intervals, figures, and the layers
        that both rules choose.

    Raises:
        IsthmusError: If model, sites, positions or questions cannot be used.
    """
    progress = progress or SilentProgress()
    needs_trigger = "trigger" in (positions or ())
    given = {**_FEW, **(settings or {})}
    study = open_study(model, given, seed, progress, needs_trigger=needs_trigger)
    positions = positions or (
        ("trigger", "last:3") if have_triggers(study.splits.test) else ("last:3",)
    )
    places = study.lm.sites(sites)
    meter = _Meter(Bench(study.lm, study.splits.test, study.config), study.recorder("test"))
    rows = meter.of([(None, Arm("none")), (None, Arm("clean"))])
    notes: list[str] = []
    for where in positions:
        variants = _variants(study, places, where, progress)
        notes += [note for one in variants for note in one.notes]
        arms: list[tuple[str | None, Arm]] = [
            (one.name, arm) for one in variants for arm in (*one.natives, *one.controls)
        ]
        with progress.stage(f"test every layer at {where}", len(arms)) as advance:
            rows += meter.of(arms, advance)
    return StudyResult(NAME, tuple(rows), tuple(notes), layer_figures(rows, model, positions))


def sweep_strengths(
    source: str,
    target: str,
    *,
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0),
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures native, transferred and random directions of one layer at every strength.

    The crossing of both models chooses layer and positions of the ridge map on validation; there
    the target's native direction is learned, too, and all are measured on test questions.

    Args:
        source: Model the direction is learned in.
        target: Model it is carried to.
        strengths: What to measure, each above 0.
        settings: Other fields of `RunConfig`: questions, triggers, sizes of splits.
        seed: Seed of everything random.
        progress: Who shows progress.

    Returns:
        Rates, accuracy, recovery, swap and damage by strength with intervals, and a figure.

    Raises:
        IsthmusError: If a model or the questions cannot be used.
    """
    progress = progress or SilentProgress()
    given = {**_FEW, **(settings or {}), "maps": ["ridge"], "source": source}
    study = open_study(target, given, seed, progress)
    learned = load_language_model(source, dtype=study.config.dtype, device=study.config.device)
    chosen = Crossing(learned, study.lm, study.splits, study.config, progress).run().chosen
    if chosen.site is None or chosen.positions is None or chosen.direction is None:
        raise ConfigError(f"the crossing from {source} to {target} chose no place")
    own = learn_twin_direction(
        study.lm, study.splits.train, [chosen.site], chosen.positions, study.config
    )
    native = _native(own, chosen.site, chosen.positions, study)
    compared = [native, chosen, *_random_like(chosen, study.config.n_random)]
    arms: list[tuple[str | None, Arm]] = [
        (None, arm.at(strength)) for arm in compared for strength in strengths
    ]
    recorder = Recorder(study.config, learned.identity.name, study.lm.identity.name, "test")
    meter = _Meter(Bench(study.lm, study.splits.test, study.config), recorder, STRENGTHS)
    rows = meter.of([(None, Arm("none")), (None, Arm("clean"))])
    with progress.stage("test every strength", len(arms)) as advance:
        rows += meter.of(arms, advance)
    note = (
        f"Everything is at {chosen.site}, positions {chosen.positions}, which validation chose for "
        f"the ridge map, at strength {chosen.strength:g}; norms of the native direction "
        f"{_norms(native)}, of the transferred one {_norms(chosen)}."
    )
    return StudyResult(STRENGTHS, tuple(rows), (note,), strength_figures(rows, source, target))


@dataclass(frozen=True)
class _Variant:
    """One way to make the native direction, at every layer.

    Attributes:
        name: As the measurements' `edit`.
        natives: One arm per layer.
        controls: Random directions of the same norms.
        notes: What the rules for a layer choose.
    """

    name: str
    natives: tuple[Arm, ...]
    controls: tuple[Arm, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Meter:
    """Measures arms on one bench under the name of a study."""

    bench: Bench
    recorder: Recorder
    task: str = NAME

    def of(
        self, arms: Sequence[tuple[str | None, Arm]], advance: Callable[[int], None] = ignore
    ) -> list[Measurement]:
        """Returns every number of arms; the name before an arm stands for its `edit` where given.

        Args:
            arms: Names and arms.
            advance: Told how many arms are done.

        Returns:
            Numbers in the order of the arms.
        """
        rows = []
        for start in range(0, len(arms), _SIDE_BY_SIDE):
            some = arms[start : start + _SIDE_BY_SIDE]
            rows += self._measured(some)
            advance(len(some))
        return rows

    def _measured(self, arms: Sequence[tuple[str | None, Arm]]) -> list[Measurement]:
        edited = [arm for _, arm in arms if arm.site is not None]
        moved = iter(zip(*self._moved(edited), strict=True))
        rows = []
        said = self.bench.complete_all([arm for _, arm in arms])
        for (edit, arm), completions in zip(arms, said, strict=True):
            found: list[Measurement] = []
            if arm.site is not None:
                scores, change = next(moved)
                damage = change.divergence.double().numpy()
                found += self.recorder.effects(arm, scores)
                found.append(self.recorder.divergence(arm, damage, self.bench.benign_turns))
            found += self.recorder.behaviour(arm, completions, self.bench.asked(arm))
            rows += [replace(one, task=self.task, edit=edit or one.edit) for one in found]
        return rows

    def _moved(self, arms: Sequence[Arm]) -> tuple[list[ArmScores], list[BenignChange]]:
        if not arms:
            return [], []
        return self.bench.score_all(arms), self.bench.benign_changes(arms)


def _variants(
    study: TriggerStudy, places: Sequence[Site], positions: str, progress: Progress
) -> list[_Variant]:
    validation = Bench(study.lm, study.splits.validation, study.config)
    selector = make_selector(validation, study.recorder("validation"), progress)
    found = []
    for name, twins in ((ACT_ADD, study.splits.train[:1]), ("add", study.splits.train)):
        learned = learn_twin_direction(study.lm, twins, places, positions, study.config)
        arms = [_native(at_one_site(learned, site), site, positions, study) for site in places]
        if name == ACT_ADD:
            natives = tuple(arm.at(ACT_ADD_STRENGTH) for arm in arms)
        else:
            natives = tuple(selector.choose_strength(arm).arm for arm in arms)
        controls = tuple(c for arm in natives for c in _random_like(arm, study.config.n_random))
        with progress.stage(f"apply the rules: {name} at {positions}", len(natives)) as advance:
            note = _rules(name, natives, _Meter(validation, study.recorder("validation")), advance)
        found.append(_Variant(name, natives, controls, (note,)))
    return found


def _native(direction: Direction, site: Site, positions: str, study: TriggerStudy) -> Arm:
    return Arm("native", site, positions, "add", 1.0, direction, seed=study.config.seed)


def _random_like(arm: Arm, n: int) -> list[Arm]:
    """Returns controls of an arm: random directions of its norms at its place and strength."""
    if arm.direction is None:
        return []
    return [
        replace(
            arm,
            condition="random",
            direction=random_direction_like(
                arm.direction, torch.Generator().manual_seed(arm.seed + i)
            ),
            map_method=None,
            seed=arm.seed + i,
        )
        for i in range(n)
    ]


def _rules(name: str, arms: Sequence[Arm], meter: _Meter, advance: Callable[[int], None]) -> str:
    """Says which layers both rules choose on validation, with what they saw there."""
    success: dict[Cell, float] = {}
    swaps: dict[Cell, float] = {}
    scored = meter.bench.score_all(arms)
    for arm, said, scores in zip(arms, meter.bench.complete_all(arms), scored, strict=True):
        cell = _cell(arm)
        done = meter.recorder.behaviour(arm, said, meter.bench.asked(arm))
        rates = [one.value for one in done if one.metric == "behaviour_rate"]
        success[cell] = 1 - (rates[0] or 0.0)
        swaps[cell] = point_effect(scores)
        advance(1)
    strong = [cell for cell, rate in success.items() if rate >= STRONGLY_STEERABLE]
    last = max(strong, key=lambda cell: cell.site.layer, default=None)
    strongest = max(swaps, key=lambda cell: (swaps[cell] == swaps[cell], swaps[cell]))
    ours = last_as_good(strongest, swaps)
    paper = (
        f"no layer, none reaches {STRONGLY_STEERABLE:.0%}"
        if last is None
        else f"{last.site} ({success[last]:.0%} there)"
    )
    return (
        f"{name} at {ours.positions}: on validation the paper's rule, the last layer that steers "
        f"strongly, chooses {paper}; the last layer as good as the best by swap is {ours.site} "
        f"(swap {swaps[ours]:.2f})."
    )


def _norms(arm: Arm) -> str:
    if arm.direction is None or arm.site is None:
        return "none"
    return ", ".join(f"{norm:.2f}" for norm in arm.direction.at(arm.site).norms.tolist())


def _cell(arm: Arm) -> Cell:
    if arm.site is None or arm.positions is None:
        raise ConfigError(f"the {arm.condition} arm has no place")
    return Cell(arm.site, arm.positions)
