"""How much: rules for the strength of a carried direction, and methods compared at equal damage.

1. A crossing chooses layer, positions and, with labels, the strength of the ridge-carried direction
   and of the native one on validation.
2. Without any label of the target: strength 1; the strength at which a typical state moves by the
   share of its length that worked in the source; the largest strength within a budget of divergence
   on benign prompts, as an addition and as a rotation that keeps every state's length.
3. At each budget of damage the carried direction is compared with the native one, with random
   directions and with the direction through a map of shuffled pairs: all do equal harm there.
4. Every strength is found on validation and measured once on test questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.strengths import (
    norm_matched_strength,
    relative_dose,
    strength_within_damage,
)
from isthmus.core.errors import ConfigError, FitError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.study_plots import Panel, condition_curve, curve_panels
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.controls import control_arms
from isthmus.workflows.crossing import Crossing
from isthmus.workflows.map_fitting import MapEnds
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import paired_rows
from isthmus.workflows.selection import Cell, make_selector
from isthmus.workflows.twin_directions import at_one_site, learn_twin_direction
from isthmus.workflows.twins import TwinSplits, map_texts, read_splits

NAME = "strength_rules"

BUDGETS = (0.002, 0.005, 0.01, 0.02, 0.05)
"""Divergences on benign prompts, in nats per token, at which methods are compared."""

_FEW = {"n_validation": 64, "n_test": 128, "n_random": 2, "maps": ["ridge"]}
_COMPARED = ("random", "shuffled_map")


def study_strengths(
    source: str,
    target: str,
    *,
    budgets: tuple[float, ...] = BUDGETS,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures rules for the strength of a carried direction, and methods at equal damage.

    `edit` tells the rules apart: `chosen with labels`, `own norm`, `norm matched`,
    `damage B` and `damage B, keeping norms` for every budget B.

    Args:
        source: Model the direction is learned in.
        target: Model it is carried to.
        budgets: Divergences on benign prompts, in nats per token, each above 0.
        settings: Other fields of `RunConfig`: task, questions, sizes of splits.
        seed: Seed of everything random.
        progress: Who shows progress.

    Returns:
        Swap, recovery and damage of every rule and, by budget, of every method, on test questions.

    Raises:
        IsthmusError: If a model or the questions cannot be used, or a budget is not positive.
    """
    shown = progress or SilentProgress()
    if not budgets or min(budgets) <= 0:
        raise ConfigError(f"budgets {budgets}: expected divergences above 0, such as 0.01")
    config = make_config(
        {**_FEW, **(settings or {}), "source": source, "target": target, "seed": seed}
    )
    models = [
        load_language_model(name, dtype=config.dtype, device=config.device)
        for name in (source, target)
    ]
    splits = read_splits(config)
    study = _Study(models[0], models[1], splits, config, shown)
    return study.run(budgets)


@dataclass(frozen=True)
class _Study:
    """One crossing with what its rules are measured on."""

    source: LanguageModel
    target: LanguageModel
    splits: TwinSplits
    config: RunConfig
    progress: Progress

    def run(self, budgets: Sequence[float]) -> StudyResult:
        crossed = Crossing(self.source, self.target, self.splits, self.config, self.progress).run()
        carried = crossed.chosen
        native = _native_arm(crossed.measurements, carried, crossed.native_direction)
        validation = Bench(self.target, self.splits.validation, self.config)
        test = Bench(self.target, self.splits.test, self.config)
        names = (self.source.identity.name, self.target.identity.name)
        meter = _Meter(test, Recorder(self.config, *names, "test"))
        dose, strength = self._source_dose(carried.positions or "")
        site, direction = _site_and_direction(carried)
        states = self._typical(self.target, site)
        matched = carried.at(norm_matched_strength(dose, direction.at(site).vectors, states))
        rules = [
            ("chosen with labels", carried),
            ("own norm", carried.at(1.0)),
            ("norm matched", matched),
        ]
        rows = [row for name, arm in rules for row in meter.of(arm, name)]
        arms = [carried, native, *self._controls(carried, crossed.source_direction)]
        with self.progress.stage("equal damage", len(arms) * len(budgets)) as advance:
            for budget in budgets:
                keeping = replace(carried, edit="add_keeping_norm")
                rows += meter.within(validation, keeping, budget, ", keeping norms")
                for arm in arms:
                    rows += meter.within(validation, arm, budget)
                    advance(1)
        note = (
            f"{names[0]} to {names[1]}: with labels validation chose strength {carried.strength}; "
            f"the source's own direction works at strength {strength:g}, which moves a typical "
            f"state by {dose:.0%} of its length, in the target strength {matched.strength:.2f}"
        )
        title = f"Swap against damage, {names[0]} to {names[1]}"
        figures = {title: svg} if (svg := _figure(rows, title)) else {}
        return StudyResult(NAME, tuple(rows), (note,), figures)

    def _source_dose(self, positions: str) -> tuple[float, float]:
        """Returns the share by which the source's own best edit moves a typical state."""
        sites = self.source.sites("all")
        learned = learn_twin_direction(
            self.source, self.splits.train, sites, positions, self.config
        )
        bench = Bench(self.source, self.splits.validation, self.config)
        name = self.source.identity.name
        recorder = Recorder(self.config, name, name, "validation")
        selector = make_selector(bench, recorder, self.progress)

        def make(cell: Cell) -> Arm:
            direction = at_one_site(learned, cell.site)
            return Arm("native", cell.site, positions, self.config.edit, 1.0, direction)

        best = selector.choose_cell("source", [Cell(site, positions) for site in sites], make).arm
        site, strength = best.site or sites[0], best.strength or 1.0
        states = self._typical(self.source, site)
        return relative_dose(learned.at(site).vectors, states, strength), strength

    def _typical(self, lm: LanguageModel, site: Site) -> Float[Tensor, "state d_model"]:
        turns = Bench(lm, self.splits.validation, self.config).benign_turns
        texts = encode_prompts(lm.tokenizer, [turn.prompt for turn in turns])
        read = all_token_activations(lm, texts, [site], batch_size=self.config.batch_size)
        kept = [
            rows[[not special for special in text.is_special]]
            for rows, text in zip(read[site], texts, strict=True)
        ]
        return torch.cat(kept).float()

    def _controls(self, carried: Arm, learned: Direction) -> list[Arm]:
        site, _ = _site_and_direction(carried)
        ends = MapEnds(self.source.identity, self.target.identity, tuple(learned.by_site), site)
        texts = map_texts(self.splits.train)
        encoded = [
            encode_prompts(lm.tokenizer, [p for p, _ in texts], answers=[a for _, a in texts])
            for lm in (self.source, self.target)
        ]
        rows = paired_rows(
            self.source,
            self.target,
            (encoded[0], encoded[1]),
            (ends.source_sites, site),
            pairing=self.config.pairing,
            batch_size=self.config.batch_size,
            progress=self.progress,
        )
        every = control_arms(carried, learned, rows, ends, self.config)
        return [arm for arm in every if arm.condition in _COMPARED]


@dataclass(frozen=True)
class _Meter:
    """Measures arms on test questions."""

    bench: Bench
    recorder: Recorder

    def of(self, arm: Arm, rule: str) -> list[Measurement]:
        """Returns effect and damage of an arm, under the name of the rule that set its strength."""
        rows = [
            *self.recorder.effects(arm, self.bench.score(arm)),
            self.recorder.divergence(arm, self.bench.damage(arm), self.bench.benign_turns),
        ]
        task = f"{NAME}/{self.recorder.config.task}"
        kept = [row for row in rows if row.metric != "edited_positions"]
        return [replace(row, task=task, edit=rule) for row in kept]

    def within(
        self, validation: Bench, arm: Arm, budget: float, variant: str = ""
    ) -> list[Measurement]:
        """Measures an arm at the largest strength within a budget on validation."""

        def damage(strength: float) -> float:
            return float(validation.benign_change(arm.at(strength)).divergence.mean())

        try:
            strength = strength_within_damage(damage, budget)
        except FitError:
            return []
        return self.of(arm.at(strength), f"damage {budget:g}{variant}")


def _site_and_direction(arm: Arm) -> tuple[Site, Direction]:
    if arm.site is None or arm.direction is None:
        raise ConfigError(f"the {arm.condition} arm has no place")
    return arm.site, arm.direction


def _native_arm(rows: Sequence[Measurement], carried: Arm, direction: Direction) -> Arm:
    """Returns the native arm that a crossing chose, from what it measured on test questions."""
    chosen = next(r for r in rows if r.condition == "native" and r.split == "test")
    site = next(iter(direction.by_site))
    return replace(
        carried,
        condition="native",
        site=site,
        positions=chosen.positions,
        strength=chosen.strength or 1.0,
        direction=direction,
        map_method=None,
        source_sites=None,
    )


def _figure(rows: Sequence[Measurement], title: str) -> str | None:
    damage = {
        (r.condition, r.edit, r.seed): r.value for r in rows if r.metric == "benign_kl" and r.value
    }
    curves = []
    for condition in ("native", "transferred", *_COMPARED):
        for seed in sorted({r.seed or 0 for r in rows if r.condition == condition}):
            points = [
                (damage[condition, r.edit, r.seed] or 0.0, r)
                for r in rows
                if (r.condition, r.seed, r.metric) == (condition, seed, "swap")
                and (r.edit or "").startswith("damage")
                and "keeping" not in (r.edit or "")
                and (condition, r.edit, r.seed) in damage
            ]
            if points:
                is_control = condition in _COMPARED
                curves.append(condition_curve(condition, points, is_dashed=is_control))
    panel = Panel(
        "swap", "divergence on benign prompts, nats per token", tuple(curves), is_log=True
    )
    return curve_panels([panel], "equal-damage", title, n_columns=1)
