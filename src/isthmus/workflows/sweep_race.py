"""Successive halving: which cells of a sweep stay in while the questions grow.

Each stage doubles the questions, and scores on the new ones only what is still in.

1. The leader of a stage is the cell with the most effect that keeps the budgets of damage so far.
2. A cell is dropped for its effect when its paired difference to the leader, on the questions that
   both have seen, is below 0 at the stated level (`evaluation/racing.py`).
3. Of what is left a stated share goes on: the cells with the most effect that seem to do no harm,
   among equals those whose answers have moved furthest.
   Damage is scored from the most effect down, until there are enough of them.
4. What goes on is dropped for its damage when that is beyond a budget which the leader keeps, at
   the same level.
5. In the end every dropped cell is held against the winner once more, on the questions that it has
   seen. Cells below the share come back where they have more effect there, the others where the
   winner does not exclude them: first for their damage on all prompts, then, if that may still
   change the winner, for their effect on all questions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isthmus.core.errors import ConfigError
from isthmus.evaluation.racing import (
    MIN_QUESTIONS,
    Effects,
    is_excluded,
    require_level,
    resampled_effects,
)
from isthmus.workflows.arms import Arm
from isthmus.workflows.config import RunConfig
from isthmus.workflows.measuring import point_effect
from isthmus.workflows.selection import Scored, best_within, harm_of, order_of
from isthmus.workflows.sweep_blocks import block_sizes
from isthmus.workflows.sweep_scores import CellScores, Damage, SweepScores

Fate = Literal["in", "effect", "damage", "share"]
"""Whether a cell stayed in, or for what it was dropped."""

_CLEARLY_BEYOND = 2.0
"""Budgets of divergence that count as harm on fewer questions than can exclude anything."""

_FEWEST_RANKED = 8
"""Questions of the first stage where cells are ranked: shares of fewer are too coarse."""

_AT_ONCE = 8
"""Cells whose damage is scored together while a leader is looked for."""


@dataclass(frozen=True)
class SweptCell:
    """What a sweep knows of one cell.

    Attributes:
        arm: Site, positions, edit and strength.
        effect: The smaller of both ways' recovery times the share of answers that turned; of
            removal alone for edits that only remove; NaN when undefined.
        damage: Mean divergence on benign prompts; None where it was not asked for.
        accuracy_loss: Share of right answers lost there; None where it was not asked for.
        n: Questions that it was scored on.
        stage: The last stage that it was scored in, from 1.
        fate: `in`, or for what it was dropped: beyond chance for its `effect` or `damage`, or for
            the `share`, because enough others were better.
    """

    arm: Arm
    effect: float
    damage: float | None
    accuracy_loss: float | None
    n: int
    stage: int
    fate: Fate


@dataclass(frozen=True)
class RaceRules:
    """How cells are scored and when they are dropped.

    Attributes:
        n_stages: Into how many growing shares the questions are cut; 1 scores every cell on all.
        keep: Share of the cells of a stage that goes on to the next, at most; 1 drops only what
            falls behind beyond chance.
        level: Share of paired resamples that must agree before a cell is dropped beyond chance.
        n_finalists: Cells that write completions; as many go on, however small the share.
        max_answer_tokens: How much of a given answer is scored, at least as far as the answers of
            a question differ.
        n_completions: Questions that finalists write completions to.

    Raises:
        ConfigError: If a number is out of range.
    """

    n_stages: int = 5
    keep: float = 0.25
    level: float = 0.995
    n_finalists: int = 3
    max_answer_tokens: int = 16
    n_completions: int = 32

    def __post_init__(self) -> None:
        """Checks all of them."""
        for name in ("n_stages", "n_finalists", "max_answer_tokens", "n_completions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        require_level(self.level)
        if not 0 < self.keep <= 1:
            raise ConfigError(
                f"keep is {self.keep}, expected a share above 0 and at most 1, such as 0.25"
            )

    def sizes(self, n_questions: int) -> list[int]:
        """Returns how questions are cut into blocks, one per stage."""
        ranks_few = self.keep < 1
        return block_sizes(
            n_questions, self.n_stages, _FEWEST_RANKED if ranks_few else MIN_QUESTIONS
        )


class SweepRace:
    """Runs the stages of one sweep.

    Args:
        scores: Scores cells.
        config: The budgets of damage, and the seed of resamples.
        rules: How cells are scored and when they are dropped.
    """

    def __init__(self, scores: SweepScores, config: RunConfig, rules: RaceRules) -> None:
        self.scores, self.config, self.rules = scores, config, rules
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
        return sorted(alive, key=lambda cell: self._merit(cell, scored[cell]), reverse=True)

    def _taken_on(self, cells: Sequence[int]) -> list[int]:
        """Looks further at cells that were dropped; returns those that have seen everything.

        Damage comes first: where the winner does harm, it is what decides most of them.
        """
        unknown = [cell for cell in cells if self._damage_known.get(cell, 0) < self.n_stages]
        if unknown:
            self._damages(unknown, self.n_stages)
            return []
        self.scores.effects(cells, self.n_stages)
        for cell in cells:
            self._dropped.pop(cell)
        return list(cells)

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

    def scores_of(self, cell: int) -> tuple[CellScores, Damage | None]:
        """Returns what a cell does on the questions that it has seen, and its damage if known."""
        stage, _ = self._dropped.get(cell, (self.n_stages, "in"))
        has_damage = self._damage_known.get(cell, 0) >= stage
        damage = self.scores.damages([cell], stage)[0] if has_damage else None
        return self.scores.effects([cell], stage)[0], damage

    def _survivors(self, alive: Sequence[int], stage: int) -> list[int]:
        effects = self._effects(alive, stage)
        left, harm = list(alive), 2
        if effects.n >= MIN_QUESTIONS:
            leader = self._leader(alive, effects, stage)
            harm = harm_of(self._scored(leader, stage), self.config)
            excluded = is_excluded(effects, alive.index(leader), self.rules.level)
            for cell, is_out in zip(alive, excluded, strict=True):
                if is_out and harm <= 1 and self._least_harm(cell) >= harm:
                    self._drop(cell, stage, "effect")
            left = [cell for cell in alive if cell not in self._dropped]
        most = max(self.rules.n_finalists, math.ceil(self.rules.keep * len(alive)))
        if stage == self.n_stages or len(left) <= most:
            self._damages(left, stage)
            best = left
        else:
            best = self._best_of(
                left, most, dict(zip(alive, effects.values.tolist(), strict=True)), stage
            )
        for cell in left:
            if cell not in best:
                self._drop(cell, stage, "share")
            elif self._least_harm(cell) > harm:
                self._drop(cell, stage, "damage")
        return [cell for cell in left if cell not in self._dropped]

    def _drop(self, cell: int, stage: int, fate: Fate) -> None:
        self._dropped[cell] = stage, fate

    def _best_of(
        self, cells: Sequence[int], most: int, value: Mapping[int, float], stage: int
    ) -> list[int]:
        """Returns so many cells: those with the most effect that seem to do no harm."""
        in_order = sorted(
            cells, key=lambda cell: self._rank(cell, value[cell], stage), reverse=True
        )
        asked: list[int] = []
        harm: dict[int, int] = {}
        for first in range(0, len(in_order), _AT_ONCE):
            here = in_order[first : first + _AT_ONCE]
            self._damages(here, stage)
            asked += here
            harm |= {cell: self._seeming_harm(cell) for cell in here}
            if sum(not one for one in harm.values()) >= most:
                break

        def merit(cell: int) -> tuple[float, ...]:
            rank = self._rank(cell, value[cell], stage)
            gentle = (-self._scored(cell, stage).damage,)
            return (-float(harm[cell]), *(gentle if harm[cell] > 1 else rank))

        return sorted(asked, key=merit, reverse=True)[:most]

    def _seeming_harm(self, cell: int) -> int:
        """Returns the harm that a cell does as far as few questions tell, as `harm_of` does."""
        if cell not in self._damage_known:
            return 0
        damage = self.scores.damages([cell], self._damage_known[cell])[0]
        if damage.n_contents >= MIN_QUESTIONS:
            return self._least_harm(cell)
        return 2 * int(damage.mean > _CLEARLY_BEYOND * self.config.max_benign_kl)

    def _known_harm(self, cell: int, *, careful: bool) -> int:
        """Returns the harm that a dropped cell does: its own, once all prompts were read."""
        if self._damage_known.get(cell, 0) == self.n_stages:
            return harm_of(self._scored(cell, self.n_stages, self._dropped[cell][0]), self.config)
        return self._least_harm(cell) if careful else self._seeming_harm(cell)

    def _leader(self, alive: Sequence[int], effects: Effects, stage: int) -> int:
        """Returns the cell with the most effect within both budgets, or as near to that as any."""
        value = dict(zip(alive, effects.values, strict=True))
        in_order = sorted(
            alive, key=lambda cell: self._rank(cell, value[cell], stage), reverse=True
        )
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
        best = max(scored, key=lambda cell: self._merit(cell, scored[cell]))
        harm = harm_of(scored[best], self.config)
        left: dict[int, float] = {}
        for stage in range(1, self.n_stages + 1):
            here = [cell for cell, (last, _) in self._dropped.items() if last == stage]
            if not here:
                continue
            effects = self._effects([best, *here], stage)
            excluded = is_excluded(effects, 0, self.rules.level)[1:]
            for cell, is_out, value in zip(here, excluded, effects.values[1:], strict=True):
                is_below = self._dropped[cell][1] == "share"
                is_behind = order_of(value) <= order_of(effects.values[0]) if is_below else is_out
                least = self._known_harm(cell, careful=not is_below)
                if not (least > harm or (is_behind and harm <= 1 and least >= harm)):
                    left[cell] = order_of(value)
        return sorted(left, key=lambda cell: -left[cell])[: self.rules.n_finalists]

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
        divergence, lost = damage.at_least(self.rules.level)
        if divergence > self.config.max_benign_kl:
            return 2
        return int(lost > self.config.max_benign_loss)

    def _scored(self, cell: int, stage: int, seen: int | None = None) -> Scored:
        """Returns effect and damage at a stage; the effect at an earlier one where that is all."""
        arm = self.scores.arms[cell]
        ways = self.scores.effects([cell], seen or stage)[0].ways(removal_only=arm.edit == "ablate")
        effect = float(np.min([one.effect for one in ways]))
        if cell not in self._damage_known:
            return Scored(arm, effect, np.nan, np.nan)
        known = min(stage, self._damage_known[cell])
        damage = self.scores.damages([cell], known)[0]
        return Scored(arm, effect, damage.mean, damage.accuracy_loss)

    def _rank(self, cell: int, effect: float, stage: int) -> tuple[float, float]:
        """Returns what the better of two cells has more of: effect, then how far answers moved.

        Where no answer turns at all, nothing else tells cells apart.
        """
        only = self.scores.arms[cell].edit == "ablate"
        moved = point_effect(self.scores.effects([cell], stage)[0].losses, removal_only=only)
        return order_of(effect), order_of(moved)

    def _merit(self, cell: int, scored: Scored) -> tuple[float, ...]:
        """Ranks cells that have seen everything as `best_within` chooses among them."""
        harm = float(harm_of(scored, self.config))
        rank = self._rank(cell, scored.effect, self.n_stages)
        return (-harm, -scored.damage, *rank) if harm > 1 else (-harm, *rank, -scored.damage)
