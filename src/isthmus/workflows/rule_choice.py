"""Finds place and strength of a carried direction by rules, without a sweep.

1. A trial: every place at a direction's own length on `N_ASKED` questions; the best `N_KEPT` stay.
2. At each of them the largest strength within the budgets of damage is found on benign prompts;
   places where none is give way to others, and where that is true of all of them the next ones
   are looked at.
3. Own length, that strength and one between are compared on the same few questions, and the
   gentlest that does nearly as much as the best is taken.

Which rules there are, and what they miss, was measured by the studies `layer_ranking` and
`strength_rules`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from isthmus.carrying.strengths import strength_within_damage
from isthmus.core.errors import FitError
from isthmus.core.progress import Progress
from isthmus.evaluation.layer_choice import choose_layers
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.measuring import point_effect
from isthmus.workflows.selection import Cell, order_of, usable_strengths

N_ASKED = 8
"""Questions whose answers the rules look at."""

N_KEPT = 3
"""Places that are looked at closely."""

NEARLY = 0.02
"""Effect on the few questions that is given up for a gentler strength."""

MOST_DAMAGE = 0.02
"""Divergence on benign prompts, in nats per token, up to which strength is raised; docs/strength.md
says why this much."""


def strict_budget(config: RunConfig) -> RunConfig:
    """Returns a run's settings with the budget of divergence up to which rules raise strength.

    Args:
        config: The run.

    Returns:
        The same with `max_benign_kl` of at most `MOST_DAMAGE`.
    """
    return config.model_copy(update={"max_benign_kl": min(config.max_benign_kl, MOST_DAMAGE)})


def brief_effects(bench: Bench, arms: Sequence[Arm]) -> list[float]:
    """Measures arms at many places on few questions.

    Args:
        bench: Its questions are asked, usually `N_ASKED`.
        arms: What is tried, all with a place.

    Returns:
        Swap, or recovery for edits that only remove; NaN where it is undefined.
    """
    sites = dict.fromkeys(arm.site for arm in arms if arm.site is not None)
    positions = dict.fromkeys(arm.positions for arm in arms if arm.positions is not None)
    bench.expect(list(sites), list(positions))
    return _effects(bench, arms)


def nearest_to_own_length(strengths: Sequence[float]) -> float:
    """Returns the strength nearest to 1, which is a direction's own length.

    Args:
        strengths: At least one, all above 0.

    Returns:
        That with the least |log strength|.
    """
    return min(strengths, key=lambda strength: abs(math.log(strength)))


def _effects(bench: Bench, arms: Sequence[Arm]) -> list[float]:
    removes_only = bench.config.edit == "ablate"
    return [point_effect(scores, removal_only=removes_only) for scores in bench.score_all(arms)]


@dataclass
class RuleChooser:
    """Chooses for the carried arms of one crossing.

    It shares no reading of the target with what sweeps, so that its cost can be counted.

    Attributes:
        bench: Validation questions: of the first `N_ASKED` answers are read, of all the benign
            prompts.
        config: The run.
        progress: Who shows progress.
    """

    bench: Bench
    config: RunConfig
    progress: Progress

    @cached_property
    def _few(self) -> Bench:
        return Bench(self.bench.lm, self.bench.twins[:N_ASKED], self.config)

    @property
    def _strengths(self) -> tuple[float, ...]:
        return usable_strengths(self.config.edit, self.config.strengths)

    @property
    def _usual(self) -> float:
        return nearest_to_own_length(self._strengths)

    def choose_cell(self, cells: Sequence[Cell], make: Callable[[Cell], Arm]) -> Arm:
        """Finds place and strength.

        Args:
            cells: Where it could act.
            make: Builds the arm there, at any strength.

        Returns:
            The arm at its place and strength: that which does most on the few questions, at the
            gentlest strength there that does nearly as much; the least damaging where no place
            keeps the budgets.
        """
        arms = [make(cell).at(self._usual) for cell in cells]
        with self.progress.stage("try every place briefly", len(arms)) as advance:
            scores = {i: {"trial": one} for i, one in enumerate(brief_effects(self._few, arms))}
            advance(len(arms))
        ranked = [arms[i] for i in choose_layers(scores, n=len(arms))]
        harmful: list[_Bounded] = []
        for first in range(0, len(ranked), N_KEPT):
            kept, found = ranked[first : first + N_KEPT], []
            with self.progress.stage("find strengths on benign prompts", len(kept)) as advance:
                for arm in kept:
                    found.append(self._within_damage(arm))
                    advance(1)
            if harmless := [one for one in found if one.damage <= self._budget]:
                return self._best(harmless)
            harmful += found
        return min(harmful, key=lambda one: one.damage).arm

    def choose_strength(self, arm: Arm) -> Arm:
        """Finds the strength of an arm whose place is given.

        Args:
            arm: The arm, at any strength.

        Returns:
            The arm at the gentlest strength within the budgets that does nearly as much on the few
            questions as any; at the smallest where none is.
        """
        found = self._within_damage(arm)
        return self._best([found]) if found.damage <= self._budget else found.arm

    def _best(self, harmless: Sequence["_Bounded"]) -> Arm:
        """Returns what does most on the few questions, at a strength that does nearly as much."""
        doses = [self._doses(one.arm.strength) for one in harmless]
        tried = [
            one.arm.at(dose) for one, some in zip(harmless, doses, strict=True) for dose in some
        ]
        if len(tried) == 1:
            return tried[0]
        effects = [order_of(one) for one in _effects(self._few, tried)]
        best = tried[effects.index(max(effects))]
        return next(
            arm
            for arm, effect in zip(tried, effects, strict=True)
            if arm.direction is best.direction and effect >= max(effects) - NEARLY
        )

    def _doses(self, most: float | None) -> list[float]:
        """Returns strengths to compare, gentlest first; an edit without strength has one."""
        if most is None or len(self._strengths) == 1:
            return [self._usual]
        usual = min(self._usual, most)
        return sorted({_round(one) for one in (usual, math.sqrt(usual * most), most)})

    @property
    def _budget(self) -> float:
        return strict_budget(self.config).max_benign_kl

    def _within_damage(self, arm: Arm) -> "_Bounded":
        """Returns an arm at its largest strength within the budgets, or at its smallest."""
        lowest, highest = self._strengths[0], self._strengths[-1]
        n_benign = len(self.bench.encoded.benign)
        # A single lost answer of few prompts is no sign of harm.
        n_lost = max(1.0, self.config.max_benign_loss * n_benign)
        known: dict[float, float] = {}

        def damage(strength: float) -> float:
            change = self.bench.benign_change(arm.at(strength))
            is_harmful = change.accuracy_loss * n_benign > n_lost + 0.5
            known[strength] = math.inf if is_harmful else float(change.divergence.double().mean())
            return known[strength]

        if damage(highest) > self._budget and highest > lowest:
            try:
                strength_within_damage(damage, self._budget, lowest=lowest, highest=highest)
            except FitError:
                return _Bounded(arm.at(lowest), known[lowest])
        kept = [one for one, harm in known.items() if harm <= self._budget]
        strength = max(kept, default=lowest)
        return _Bounded(arm.at(strength), known[strength])


@dataclass(frozen=True)
class _Bounded:
    """An arm at a strength, with its damage on benign prompts; infinite where answers are lost."""

    arm: Arm
    damage: float


def _round(strength: float) -> float:
    return float(f"{strength:.4g}")


def rule_notes(config: RunConfig, n_places: int) -> list[str]:
    """Says what was not looked at; nothing where a sweep chose.

    Args:
        config: The run.
        n_places: How many places there are.

    Returns:
        One note, or none.
    """
    if config.choose_by != "rules":
        return []
    note = (
        f"place and strength of the carried direction were found by rules ({N_ASKED} questions at "
        f"each of {n_places} places; strengths at the best {min(N_KEPT, n_places)}, or the next "
        "where those do harm, by benign prompts), those of the native direction by a sweep"
    )
    return [note]
