"""Chooses site, positions and strength on the validation split.

1. Every site and kind of positions is scored at two strengths (of three, at the middle one) on half
   of the questions; the damage on benign prompts, divergence and right answers lost, is measured
   from the strongest effect down as far as it can decide.
2. Of the places within both budgets (with none within both, within that of divergence) the
   strongest is found, and of the layers as good up to `LATER_LAYER_TOLERANCE` at the same positions
   the last is taken.
3. There every strength is scored on all questions; the strongest effect within both budgets is
   kept, with none within both the strongest within that of divergence, else the least damaging.
4. Where this disappoints (no strength within both budgets, or less effect than half of the
   questions promised), every strength is also scored at the place that, of those that did as well,
   is damaged least by the larger strength, and the better of the two is kept.
5. `refine` tries strengths between the one that was kept and the next larger, so that arms are
   compared at the damage that the budgets allow, not at what a grid of strengths leaves of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.evaluation.measurements import Measurement
from isthmus.workflows.arms import WITHOUT_STRENGTH, Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import EditKind, RunConfig
from isthmus.workflows.measuring import Recorder, point_effect

LATER_LAYER_TOLERANCE = 0.02
"""Effect given up for a later layer; arXiv 2503.04429 takes the last layer that works."""

_RESAMPLES = 400
_DISAPPOINTS = 0.05
"""How far all questions may fall behind half of them before another place is tried."""
WITHIN_KL = 1
"""What `harm_of` says of what keeps the budget of divergence alone."""
_AT_ONCE = 4
"""Arms whose damage is measured together while one that keeps the budgets is looked for."""
_SCORED_AT_ONCE = 16
"""Arms that are scored between two signs of progress."""


@dataclass(frozen=True)
class Cell:
    """One place where an arm could act.

    Attributes:
        site: Target site.
        positions: Which tokens.
    """

    site: Site
    positions: str


_Key = tuple[Cell, float]
"""A place and a strength."""


@dataclass(frozen=True)
class Scored:
    """An arm with its effect and damage on validation.

    Attributes:
        arm: The arm.
        effect: Swap, or recovery for edits that only remove; NaN when undefined.
        damage: Mean divergence on benign prompts, in nats per token.
        accuracy_loss: Share of right answers to benign prompts, untouched minus edited.
        n: How many questions the effect is of; 0 when not known.
    """

    arm: Arm
    effect: float
    damage: float
    accuracy_loss: float = 0.0
    n: int = 0


def usable_strengths(edit: EditKind, strengths: Sequence[float]) -> tuple[float, ...]:
    """Returns the strengths that differ in effect: ablation and replacement know only one."""
    return (1.0,) if edit in WITHOUT_STRENGTH else tuple(strengths)


def two_between(first: float, last: float) -> tuple[float, float]:
    """Returns two strengths evenly between two others, in their order, without endless digits."""
    step = (last - first) / 3
    # Four decimals, or as many as the smaller of small strengths needs for four digits.
    digits = max(4, 3 - math.floor(math.log10(min(first, last))))
    return round(first + step, digits), round(first + 2 * step, digits)


@dataclass
class Selector:
    """Chooses for the arms of one crossing and keeps what it measured.

    Attributes:
        coarse: Bench on half of the validation questions.
        fine: Bench on all of them.
        recorder: Writes validation measurements.
        config: The run.
        progress: Who shows progress.
        measured: Every validation measurement so far; what is measured again is not repeated.
    """

    coarse: Bench
    fine: Bench
    recorder: Recorder
    config: RunConfig
    progress: Progress
    measured: list[Measurement]

    @property
    def _removes_only(self) -> bool:
        return self.config.edit == "ablate"

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strengths among which it chooses, in the order of the configuration."""
        return usable_strengths(self.config.edit, self.config.strengths)

    def choose_cell(self, name: str, cells: Sequence[Cell], make: Callable[[Cell], Arm]) -> Scored:
        """Chooses the best site, positions and strength of one condition.

        Args:
            name: The condition, for people.
            cells: Where it could act.
            make: Builds its arm there, at any strength.

        Returns:
            The chosen arm with its effect and damage.
        """
        strengths = self.strengths
        tried = sorted({strengths[len(strengths) // 3], strengths[-1 - len(strengths) // 3]})
        arms = {(cell, dose): make(cell).at(dose) for cell in cells for dose in tried}
        with self.progress.stage(f"choose a layer: {name}", len(arms)) as advance:
            best, at_most = self._compared(arms, tried[-1], advance)
        harm = {cell: harm_of(scored, self.config) for cell, scored in best.items()}
        least = min(harm.values())
        effects = {cell: one.effect for cell, one in best.items() if harm[cell] == least}
        strongest = max(effects, key=lambda cell: order_of(effects[cell]))
        later = last_as_good(strongest, effects)
        found = self._best(self.doses(self.fine, make(later), strengths))
        hoped = order_of(effects[strongest])
        gentlest = min(
            (cell for cell in effects if order_of(effects[cell]) >= hoped - LATER_LAYER_TOLERANCE),
            key=at_most,
        )
        is_as_hoped = (
            not harm_of(found, self.config) and order_of(found.effect) >= hoped - _DISAPPOINTS
        )
        if gentlest == later or is_as_hoped:
            return found
        second = self._best(self.doses(self.fine, make(gentlest), strengths))
        return self._best([found, second])

    def _compared(
        self,
        arms: Mapping[_Key, Arm],
        largest: float,
        advance: Callable[[int], None],
    ) -> tuple[dict[Cell, Scored], Callable[[Cell], float]]:
        """Scores places at few strengths; damage is measured only where it can matter.

        In the order of their effects, damage is measured until an arm keeps both budgets, and then
        of all arms that are as good as that one. What is left has less effect, harmless or not.

        Args:
            arms: By place and strength.
            largest: The strength at which places are compared by their damage.
            advance: Told how many arms are done.

        Returns:
            The best arm of every place that can be chosen, and the damage of a place at the largest
            strength.
        """
        keys = list(arms)
        values: dict[_Key, float] = {}
        for first in range(0, len(keys), _SCORED_AT_ONCE):
            part = keys[first : first + _SCORED_AT_ONCE]
            found = self._effects(self.coarse, [arms[key] for key in part])
            values |= dict(zip(part, found, strict=True))
            advance(len(part))
        known: dict[_Key, Scored] = {}

        def measure(some: Sequence[_Key]) -> None:
            new = [key for key in some if key not in known]
            changes = self._damages(self.coarse, [arms[key] for key in new])
            for key, (damage, lost) in zip(new, changes, strict=True):
                known[key] = Scored(arms[key], values[key], damage, lost)

        self._measure_from_the_top(values, known, measure)
        by_cell: dict[Cell, list[Scored]] = {}
        for key in keys:
            if key in known:
                by_cell.setdefault(key[0], []).append(known[key])

        def at_most(cell: Cell) -> float:
            measure([(cell, largest)])
            return known[cell, largest].damage

        return {cell: self._best(scored) for cell, scored in by_cell.items()}, at_most

    def _measure_from_the_top(
        self,
        values: Mapping[_Key, float],
        known: Mapping[_Key, Scored],
        measure: Callable[[Sequence[_Key]], None],
    ) -> None:
        in_order = sorted(values, key=lambda key: -order_of(values[key]))
        floor = -math.inf
        for first in range(0, len(in_order), _AT_ONCE):
            part = in_order[first : first + _AT_ONCE]
            if order_of(values[part[0]]) < floor:
                return
            measure(part)
            kept = [key for key in part if not harm_of(known[key], self.config)]
            if kept and floor == -math.inf:
                floor = order_of(values[kept[0]]) - LATER_LAYER_TOLERANCE

    def choose_strength(self, arm: Arm) -> Scored:
        """Chooses the strength of an arm whose place is given.

        The choice is made on half of the questions; that it costs few right answers is confirmed on
        all of them, or the next best is taken.
        """
        left = self.doses(self.coarse, arm, self.strengths)
        confirmed: list[Scored] = []
        while left:
            found = self._best(left)
            left = [one for one in left if one is not found]
            if harm_of(found, self.config):
                # What is left does harm on half of the questions already.
                return self._best([*confirmed, found, *left])
            lost = self.fine.benign_change(found.arm).accuracy_loss
            confirmed.append(replace(found, accuracy_loss=max(lost, found.accuracy_loss)))
            if not harm_of(confirmed[-1], self.config):
                return confirmed[-1]
        return self._best(confirmed)

    def refine(self, found: Scored) -> Scored:
        """Tries two strengths between a chosen one and the next larger, on all questions.

        Args:
            found: What was chosen; left unchanged.

        Returns:
            A larger strength within both budgets if its effect is clearly larger, else `found`:
            where the chosen one has nearly all of the effect, or is the largest, or keeps no
            budget, nothing is tried.
        """
        strength = found.arm.strength
        larger = [s for s in self.strengths if strength is not None and s > strength]
        has_it_all = order_of(found.effect) >= 1 - _DISAPPOINTS
        if strength is None or not larger or has_it_all or harm_of(found, self.config):
            return found
        between = list(two_between(strength, min(larger)))
        is_of_all = found.n == len(self.fine.twins)
        others = self.doses(self.fine, found.arm, between if is_of_all else [strength, *between])
        same = found if is_of_all else others.pop(0)
        best = self._best([same, *others])
        gained = order_of(best.effect) - order_of(same.effect)
        is_better = gained > LATER_LAYER_TOLERANCE and not harm_of(best, self.config)
        return best if is_better else found

    def record_doses(self, arm: Arm) -> None:
        """Measures an arm at every strength without choosing, for the dose-response curve."""
        self.doses(self.coarse, arm, self.strengths)

    def doses(self, bench: Bench, arm: Arm, strengths: Sequence[float]) -> list[Scored]:
        """Returns effect and damage of an arm at several strengths on one bench."""
        label = f"choose a strength: {arm.condition} {arm.map_method or ''}".rstrip()
        arms = [arm.at(strength) for strength in strengths]
        with self.progress.stage(label, len(strengths)) as advance:
            damages = self._damages(bench, arms)
            effects = self._effects(bench, arms)
            advance(len(strengths))
        return [
            Scored(arm, effect, *damage, n=len(bench.twins))
            for arm, effect, damage in zip(arms, effects, damages, strict=True)
        ]

    def _damages(self, bench: Bench, arms: Sequence[Arm]) -> list[tuple[float, float]]:
        """Returns mean divergence and lost right answers, arm by arm."""
        found = []
        for arm, change in zip(arms, bench.benign_changes(arms), strict=True):
            damage = change.divergence.double().numpy()
            self._keep(arm, [self.recorder.divergence(arm, damage, bench.benign_turns)])
            found.append((float(damage.mean()), change.accuracy_loss))
        return found

    def _effects(self, bench: Bench, arms: Sequence[Arm]) -> list[float]:
        found = []
        for arm, scores in zip(arms, bench.score_all(arms), strict=True):
            rows = self.recorder.effects(arm, scores)
            self._keep(arm, [m for m in rows if m.metric != "edited_positions"])
            found.append(point_effect(scores, removal_only=self._removes_only))
        return found

    @cached_property
    def _kept(self) -> dict[tuple[object, ...], Arm]:
        return {}

    def _keep(self, arm: Arm, rows: Sequence[Measurement]) -> None:
        # A chosen strength is confirmed by measuring it again. Studies try directions of other
        # sites that are called alike here, and name them apart.
        for one in rows:
            name = (id(arm.direction), *one.key)
            if name not in self._kept:
                self._kept[name] = arm
                self.measured.append(one)

    def _best(self, scored: Sequence[Scored]) -> Scored:
        return best_within(scored, self.config)


def best_within(scored: Sequence[Scored], config: RunConfig) -> Scored:
    """Returns the strongest within both budgets of damage, or as near to that as there is.

    Args:
        scored: What was tried, at least one.
        config: The budgets.

    Returns:
        The strongest within both, else the strongest within that of divergence, else the least
        damaging.
    """
    least = min(harm_of(one, config) for one in scored)
    if least > WITHIN_KL:
        return min(scored, key=lambda one: one.damage)
    return max((one for one in scored if harm_of(one, config) == least), key=rank)


def harm_of(scored: Scored, config: RunConfig) -> int:
    """Says how a candidate keeps the budgets of damage.

    Args:
        scored: Effect and damage.
        config: The budgets.

    Returns:
        0 within both budgets, 1 within that of divergence alone, 2 beyond it.
    """
    if scored.damage > config.max_benign_kl:
        return WITHIN_KL + 1
    return WITHIN_KL if scored.accuracy_loss > config.max_benign_loss else 0


def last_as_good(best: Cell, effects: Mapping[Cell, float]) -> Cell:
    """Returns the last layer at the best cell's positions whose effect is as good as its own.

    Args:
        best: The cell with the most effect.
        effects: Effect of every cell.

    Returns:
        A cell with the positions of the best one.
    """
    as_good = [
        cell
        for cell, effect in effects.items()
        if cell.positions == best.positions
        and order_of(effect) >= order_of(effects[best]) - LATER_LAYER_TOLERANCE
    ]
    return max(as_good, key=lambda cell: cell.site.layer) if as_good else best


def rank(scored: Scored) -> tuple[float, float]:
    """Returns what the best arm has most of: effect, then harmlessness."""
    return order_of(scored.effect), -scored.damage


def order_of(effect: float) -> float:
    """Ranks an undefined effect below every defined one.

    Args:
        effect: An effect; NaN when undefined.

    Returns:
        The effect, or minus infinity.
    """
    return -math.inf if math.isnan(effect) else effect


def make_selector(bench: Bench, recorder: Recorder, progress: Progress) -> Selector:
    """Returns a selector on a validation bench."""
    half = bench.twins[: max(4, len(bench.twins) // 2)]
    coarse = Bench(bench.lm, half, bench.config)
    quick = Recorder(recorder.config, recorder.source, recorder.target, "validation", _RESAMPLES)
    return Selector(coarse, bench, quick, bench.config, progress, [])
