"""Chooses site, positions and strength on the validation split.

1. Every site and kind of positions is scored at two strengths on half of the questions, with the
   damage on benign prompts: divergence, and right answers lost.
2. Of the places within both budgets (with none within both, within that of divergence) the
   strongest is found, and of the layers as good up to `LATER_LAYER_TOLERANCE` at the same positions
   the last is taken.
3. There every strength is scored on all questions; the strongest effect within both budgets is
   kept, with none within both the strongest within that of divergence, else the least damaging.
4. Where this disappoints (no strength within both budgets, or less effect than half of the
   questions promised), every strength is also scored at the place that, of those that did as well,
   is damaged least by the larger strength, and the better of the two is kept.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.evaluation.measurements import Measurement
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import EditKind, RunConfig
from isthmus.workflows.measuring import Recorder, point_effect

LATER_LAYER_TOLERANCE = 0.02
"""Effect given up for a later layer; arXiv 2503.04429 takes the last layer that works."""

_RESAMPLES = 400
_DISAPPOINTS = 0.05
"""How far all questions may fall behind half of them before another place is tried."""
_WITHIN_KL = 1


@dataclass(frozen=True)
class Cell:
    """One place where an arm could act.

    Attributes:
        site: Target site.
        positions: Which tokens.
    """

    site: Site
    positions: str


@dataclass(frozen=True)
class Scored:
    """An arm with its effect and damage on validation.

    Attributes:
        arm: The arm.
        effect: Swap, or recovery for edits that only remove; NaN when undefined.
        damage: Mean divergence on benign prompts, in nats per token.
        accuracy_loss: Share of right answers to benign prompts, untouched minus edited.
    """

    arm: Arm
    effect: float
    damage: float
    accuracy_loss: float = 0.0


def usable_strengths(edit: EditKind, strengths: Sequence[float]) -> tuple[float, ...]:
    """Returns the strengths that differ in effect: ablation and replacement know only one."""
    return (1.0,) if edit in {"ablate", "replace"} else tuple(strengths)


@dataclass
class Selector:
    """Chooses for the arms of one crossing and keeps what it measured.

    Attributes:
        coarse: Bench on half of the validation questions.
        fine: Bench on all of them.
        recorder: Writes validation measurements.
        config: The run.
        progress: Who shows progress.
        measured: Every validation measurement so far.
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

    def choose_cell(self, name: str, cells: Sequence[Cell], make: Callable[[Cell], Arm]) -> Scored:
        """Chooses the best site, positions and strength of one condition.

        Args:
            name: The condition, for people.
            cells: Where it could act.
            make: Builds its arm there, at any strength.

        Returns:
            The chosen arm with its effect and damage.
        """
        strengths = usable_strengths(self.config.edit, self.config.strengths)
        tried = sorted({strengths[len(strengths) // 3], strengths[-1 - len(strengths) // 3]})
        best: dict[Cell, Scored] = {}
        # At one and the same strength, so that places compare.
        at_most: dict[Cell, float] = {}
        with self.progress.stage(f"choose a layer: {name}", len(cells) * len(tried)) as advance:
            for cell in cells:
                scored = []
                for strength in tried:
                    scored.append(self._scored(self.coarse, make(cell).at(strength)))
                    advance(1)
                best[cell] = self._best(scored)
                at_most[cell] = scored[-1].damage
        harm = {cell: _harm(scored, self.config) for cell, scored in best.items()}
        least = min(harm.values())
        effects = {cell: one.effect for cell, one in best.items() if harm[cell] == least}
        strongest = max(effects, key=lambda cell: _order(effects[cell]))
        later = last_as_good(strongest, effects)
        found = self._best(self._doses(self.fine, make(later), strengths))
        hoped = _order(effects[strongest])
        gentlest = min(
            (cell for cell in effects if _order(effects[cell]) >= hoped - LATER_LAYER_TOLERANCE),
            key=lambda cell: at_most[cell],
        )
        is_as_hoped = not _harm(found, self.config) and _order(found.effect) >= hoped - _DISAPPOINTS
        if gentlest == later or is_as_hoped:
            return found
        second = self._best(self._doses(self.fine, make(gentlest), strengths))
        return self._best([found, second])

    def choose_strength(self, arm: Arm) -> Scored:
        """Chooses the strength of an arm whose place is given.

        The choice is made on half of the questions; that it costs few right answers is confirmed on
        all of them, or the next best is taken.
        """
        strengths = usable_strengths(self.config.edit, self.config.strengths)
        left = self._doses(self.coarse, arm, strengths)
        confirmed: list[Scored] = []
        while left:
            found = self._best(left)
            left = [one for one in left if one is not found]
            if _harm(found, self.config):
                # What is left does harm on half of the questions already.
                return self._best([*confirmed, found, *left])
            lost = self.fine.benign_change(found.arm).accuracy_loss
            confirmed.append(replace(found, accuracy_loss=max(lost, found.accuracy_loss)))
            if not _harm(confirmed[-1], self.config):
                return confirmed[-1]
        return self._best(confirmed)

    def record_doses(self, arm: Arm) -> None:
        """Measures an arm at every strength without choosing, for the dose-response curve."""
        self._doses(self.coarse, arm, usable_strengths(self.config.edit, self.config.strengths))

    def _doses(self, bench: Bench, arm: Arm, strengths: Sequence[float]) -> list[Scored]:
        scored = []
        label = f"choose a strength: {arm.condition} {arm.map_method or ''}".rstrip()
        with self.progress.stage(label, len(strengths)) as advance:
            for strength in strengths:
                scored.append(self._scored(bench, arm.at(strength)))
                advance(1)
        return scored

    def _scored(self, bench: Bench, arm: Arm) -> Scored:
        change = bench.benign_change(arm)
        damage = change.divergence.double().numpy()
        self.measured.append(self.recorder.divergence(arm, damage))
        return Scored(arm, self._effect(bench, arm), float(damage.mean()), change.accuracy_loss)

    def _effect(self, bench: Bench, arm: Arm) -> float:
        scores = bench.score(arm)
        self.measured += [
            m for m in self.recorder.effects(arm, scores) if m.metric != "edited_positions"
        ]
        return point_effect(scores, removal_only=self._removes_only)

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
    least = min(_harm(one, config) for one in scored)
    if least > _WITHIN_KL:
        return min(scored, key=lambda one: one.damage)
    return max((one for one in scored if _harm(one, config) == least), key=rank)


def _harm(scored: Scored, config: RunConfig) -> int:
    """Returns 0 within both budgets, 1 within that of divergence alone, 2 beyond it."""
    if scored.damage > config.max_benign_kl:
        return _WITHIN_KL + 1
    return _WITHIN_KL if scored.accuracy_loss > config.max_benign_loss else 0


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
        and _order(effect) >= _order(effects[best]) - LATER_LAYER_TOLERANCE
    ]
    return max(as_good, key=lambda cell: cell.site.layer) if as_good else best


def rank(scored: Scored) -> tuple[float, float]:
    """Returns what the best arm has most of: effect, then harmlessness."""
    return _order(scored.effect), -scored.damage


def _order(effect: float) -> float:
    """Ranks an undefined effect below every defined one."""
    return -math.inf if math.isnan(effect) else effect


def make_selector(bench: Bench, recorder: Recorder, progress: Progress) -> Selector:
    """Returns a selector on a validation bench."""
    half = bench.twins[: max(4, len(bench.twins) // 2)]
    coarse = Bench(bench.lm, half, bench.config)
    quick = Recorder(recorder.config, recorder.source, recorder.target, "validation", _RESAMPLES)
    return Selector(coarse, bench, quick, bench.config, progress, [])
