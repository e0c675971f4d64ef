"""Successive elimination: which cells of a sweep stay in while the questions grow.

Each stage doubles the questions, and scores on the new ones only what is still in.

1. The leader of a stage is the cell with the most effect that keeps the budgets of damage so far.
2. A cell is dropped for its effect when its paired difference to the leader, on the questions that
   both have seen, is below 0 at the stated level (`evaluation/racing.py`).
3. What is left has its damage scored, and is dropped when that is beyond a budget which the leader
   keeps, at the same level.
4. In the end every dropped cell is held against the winner once more, on the questions that it has
   seen. What the winner does not exclude goes on, stage by stage, until it is excluded or has seen
   all questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isthmus.evaluation.racing import Effects, is_excluded, mean_bounds, resampled_effects
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores
from isthmus.workflows.config import RunConfig
from isthmus.workflows.measuring import point_effect
from isthmus.workflows.selection import Scored, best_within, harm_of, order_of
from isthmus.workflows.sweep_scores import Damage, SweepScores

Fate = Literal["in", "effect", "damage"]
"""Whether a cell stayed in, or for what it was dropped."""

_AT_ONCE = 8
"""Cells whose damage is scored together while a leader is looked for, or that come back at once."""


@dataclass(frozen=True)
class SweptCell:
    """What a sweep knows of one cell.

    Attributes:
        arm: Site, positions, edit and strength.
        effect: Swap, or recovery for edits that only remove; NaN when undefined.
        damage: Mean divergence on benign prompts; None where it was not asked for.
        accuracy_loss: Share of right answers lost there; None where it was not asked for.
        n: Questions that it was scored on.
        stage: The last stage that it was scored in, from 1.
        fate: `in`, or for what it was dropped.
    """

    arm: Arm
    effect: float
    damage: float | None
    accuracy_loss: float | None
    n: int
    stage: int
    fate: Fate


class SweepRace:
    """Runs the stages of one sweep.

    Args:
        scores: Scores cells.
        config: The budgets of damage, and the seed of resamples.
        level: Share of resamples that must agree before a cell is dropped.
    """

    def __init__(self, scores: SweepScores, config: RunConfig, level: float) -> None:
        self.scores, self.config, self.level = scores, config, level
        self.n_stages = len(scores.blocks)
        self._dropped: dict[int, tuple[int, Fate]] = {}
        self._damage_known: dict[int, int] = {}

    def run(self) -> list[int]:
        """Runs all stages and returns the cells that stayed in, best first."""
        alive = list(range(len(self.scores.arms)))
        for stage in range(1, self.n_stages + 1):
            alive = self._survivors(alive, stage)
        while back := self._not_excluded(alive):
            alive += self._taken_on(back)
        scored = {cell: self._scored(cell, self.n_stages) for cell in alive}
        return sorted(alive, key=lambda cell: self._merit(scored[cell]), reverse=True)

    def _taken_on(self, cells: Sequence[int]) -> list[int]:
        """Looks further at cells that were dropped; returns those that have seen everything."""
        finished = []
        for stage in sorted({self._dropped[cell][0] for cell in cells}):
            here = [cell for cell in cells if self._dropped[cell][0] == stage]
            unknown = [cell for cell in here if self._damage_known.get(cell, 0) < stage]
            if unknown:
                self._damages(unknown, stage)
            elif stage < self.n_stages:
                self.scores.effects(here, stage + 1)
                for cell in here:
                    self._dropped[cell] = stage + 1, self._dropped[cell][1]
            else:
                for cell in here:
                    self._dropped.pop(cell)
                finished += here
        return finished

    def cells(self) -> list[SweptCell]:
        """Returns what is known of every cell, in the order of the arms."""
        found = []
        for cell, arm in enumerate(self.scores.arms):
            stage, fate = self._dropped.get(cell, (self.n_stages, "in"))
            one = self._scored(cell, stage)
            # On the same questions as the effect, or not at all.
            has_damage = self._damage_known.get(cell, 0) >= stage
            found.append(
                SweptCell(
                    arm,
                    one.effect,
                    one.damage if has_damage else None,
                    one.accuracy_loss if has_damage else None,
                    sum(self.scores.n_questions[:stage]),
                    stage,
                    fate,
                )
            )
        return found

    def scores_of(self, cell: int) -> tuple[ArmScores, Damage | None]:
        """Returns losses of a cell on the questions that it has seen, and its damage if known."""
        stage, _ = self._dropped.get(cell, (self.n_stages, "in"))
        has_damage = self._damage_known.get(cell, 0) >= stage
        damage = self.scores.damages([cell], stage)[0] if has_damage else None
        return self.scores.effects([cell], stage)[0], damage

    def _survivors(self, alive: Sequence[int], stage: int) -> list[int]:
        effects = self._effects(alive, stage)
        leader = self._leader(alive, effects, stage)
        harm = harm_of(self._scored(leader, stage), self.config)
        excluded = is_excluded(effects, alive.index(leader), self.level)
        left = []
        for cell, is_out in zip(alive, excluded, strict=True):
            if is_out and harm <= 1 and self._least_harm(cell) >= harm:
                self._dropped[cell] = stage, "effect"
            else:
                left.append(cell)
        self._damages(left, stage)
        for cell in left:
            if self._least_harm(cell) > harm:
                self._dropped[cell] = stage, "damage"
        return [cell for cell in left if cell not in self._dropped]

    def _leader(self, alive: Sequence[int], effects: Effects, stage: int) -> int:
        """Returns the cell with the most effect within both budgets, or as near to that as any."""
        value = dict(zip(alive, effects.values, strict=True))
        in_order = sorted(alive, key=lambda cell: -order_of(value[cell]))
        for first in range(0, len(in_order), _AT_ONCE):
            asked = in_order[first : first + _AT_ONCE]
            self._damages(asked, stage)
            for cell in asked:
                if not harm_of(self._scored(cell, stage), self.config):
                    return cell
        scored = {cell: self._scored(cell, stage) for cell in alive}
        best = best_within(list(scored.values()), self.config)
        return next(cell for cell in alive if scored[cell] is best)

    def _not_excluded(self, alive: Sequence[int]) -> list[int]:
        """Returns the best of the dropped cells that the winner does not exclude."""
        scored = {cell: self._scored(cell, self.n_stages) for cell in alive}
        best = max(scored, key=lambda cell: self._merit(scored[cell]))
        harm = harm_of(scored[best], self.config)
        left: dict[int, float] = {}
        for stage in range(1, self.n_stages + 1):
            here = [cell for cell, (last, _) in self._dropped.items() if last == stage]
            if not here:
                continue
            effects = self._effects([best, *here], stage)
            excluded = is_excluded(effects, 0, self.level)[1:]
            for cell, is_out, value in zip(here, excluded, effects.values[1:], strict=True):
                least = self._least_harm(cell)
                if not (least > harm or (is_out and harm <= 1 and least >= harm)):
                    left[cell] = order_of(value)
        return sorted(left, key=lambda cell: -left[cell])[:_AT_ONCE]

    def _effects(self, cells: Sequence[int], stage: int) -> Effects:
        found = self.scores.effects(cells, stage)
        removes_only = {self.scores.arms[cell].edit == "ablate" for cell in cells}
        every = [
            resampled_effects(
                [one.removal for one in found],
                None if only else [one.induction for one in found],
                seed=self.config.seed,
            )
            for only in sorted(removes_only)
        ]
        if len(every) == 1:
            return every[0]
        # Cells of edits that only remove have no induction to be judged by.
        alone = np.array([self.scores.arms[cell].edit == "ablate" for cell in cells])
        both, removal = every
        return Effects(
            np.where(alone, removal.values, both.values),
            np.where(alone[None], removal.resampled, both.resampled),
            both.n,
        )

    def _damages(self, cells: Sequence[int], stage: int) -> list[Damage]:
        for cell in cells:
            self._damage_known[cell] = max(stage, self._damage_known.get(cell, 0))
        return self.scores.damages(cells, stage) if cells else []

    def _least_harm(self, cell: int) -> int:
        """Returns the least harm that a cell may still turn out to do, as `harm_of` counts it."""
        if cell not in self._damage_known:
            return 0
        damage = self.scores.damages([cell], self._damage_known[cell])[0]
        if mean_bounds(damage.divergence, self.level)[0] > self.config.max_benign_kl:
            return 2
        lost = damage.was_right.astype(float) - damage.is_right
        return int(mean_bounds(lost, self.level)[0] > self.config.max_benign_loss)

    def _scored(self, cell: int, stage: int) -> Scored:
        arm = self.scores.arms[cell]
        losses = self.scores.effects([cell], stage)[0]
        effect = point_effect(losses, removal_only=arm.edit == "ablate")
        if cell not in self._damage_known:
            return Scored(arm, effect, np.nan, np.nan)
        known = min(stage, self._damage_known[cell])
        damage = self.scores.damages([cell], known)[0]
        return Scored(arm, effect, damage.mean, damage.accuracy_loss)

    def _merit(self, scored: Scored) -> tuple[float, float, float]:
        """Ranks cells as `best_within` chooses among them."""
        harm = float(harm_of(scored, self.config))
        effect = order_of(scored.effect)
        return (-harm, -scored.damage, effect) if harm > 1 else (-harm, effect, -scored.damage)
