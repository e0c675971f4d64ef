"""Chooses on validation for one crossing, and charges what that asks of the target.

1. Place and strength of the native direction, by a sweep.
2. Those of the carried one, by the same sweep or, with `choose_by: rules`, without.
3. The strength of every other map at that place, and the map that does best.
4. What was chosen is confirmed on the benign prompts of more questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.data.prompts import TwinPrompt
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.confirming import confirmed, confirmed_unscored
from isthmus.workflows.costs import COST_OF_MAP, CostLedger
from isthmus.workflows.rule_choice import RuleChooser, strict_budget
from isthmus.workflows.selection import Cell, Scored, Selector, best_within, harm_of
from isthmus.workflows.twins import EncodedTwins, TwinSplits, encode_twins


@dataclass
class Choosing:
    """Everything that validation chooses in one crossing.

    Attributes:
        target: Target model.
        splits: Questions; test is not looked at.
        config: The run.
        selector: Sweeps, and keeps what it measures.
        costs: Who pays.
        progress: Who shows progress.
    """

    target: LanguageModel
    splits: TwinSplits
    config: RunConfig
    selector: Selector
    costs: CostLedger
    progress: Progress

    @property
    def _has_rules(self) -> bool:
        return self.config.choose_by == "rules"

    @cached_property
    def _rules(self) -> RuleChooser:
        bench = Bench(self.target, self.selector.coarse.twins, self.config)
        return RuleChooser(bench, self.config, self.progress)

    def prepare(self, sites: Sequence[Site], positions: Sequence[str]) -> None:
        """Reads what sweeps over some places share.

        Args:
            sites: Where arms will edit.
            positions: Which tokens.
        """
        with self.costs.of("bench"):
            self.selector.coarse.prepare(sites, positions)
            self.selector.fine.prepare(sites, positions)

    def native(self, cells: Sequence[Cell], make: Callable[[Cell], Arm]) -> Scored:
        """Chooses place and strength of the native direction; the caller charges it.

        Args:
            cells: Where it could act.
            make: Builds its arm there, at any strength.

        Returns:
            The chosen arm, confirmed.
        """
        found = self.selector.refine(self.selector.choose_cell("native", cells, make))
        return confirmed(self.selector, self._wide(), found)

    def carried(self, cells: Sequence[Cell], make: Callable[[Cell], Arm]) -> Scored:
        """Chooses place and strength of the direction that the ridge maps carry.

        Args:
            cells: Where it could act.
            make: Builds its arm there, at any strength.

        Returns:
            The chosen arm.
        """
        with self.costs.of("place"):
            if not self._has_rules:
                found = self.selector.choose_cell("transferred", cells, make)
                return self.selector.refine(found)
            arm = self._rules.choose_cell(cells, make)
        return self._compared(arm)

    def strength(self, method: str, arm: Arm) -> Scored:
        """Chooses the strength of another map at the place of the ridge map.

        Args:
            method: Which map.
            arm: Its arm.

        Returns:
            The arm at its strength.
        """
        with self.costs.of(COST_OF_MAP.get(method)):
            if not self._has_rules:
                return self.selector.refine(self.selector.choose_strength(arm))
            chosen = self._rules.choose_strength(arm)
        return self._compared(chosen)

    def _compared(self, arm: Arm) -> Scored:
        # Maps are compared with each other by labels in any case; a single one needs none.
        strength = 1.0 if arm.strength is None else arm.strength
        return self.selector.doses(self.selector.coarse, arm, [strength])[0]

    def best(self, scored: dict[str, Scored]) -> str:
        """Finds the method that does best at a strength that is confirmed.

        A gentler strength competes anew. Where none is harmless the method stands: others, whose
        harmlessness is as unsure, would take its place with less effect.

        Args:
            scored: Every map's arm; that of a confirmed one is replaced.

        Returns:
            The method.
        """
        is_confirmed: set[str] = set()
        while True:
            chosen = best_within(list(scored.values()), self.config)
            best = next(method for method, one in scored.items() if one is chosen)
            if best in is_confirmed:
                return best
            with self.costs.of(COST_OF_MAP.get(best)):
                scored[best] = self._confirmed(chosen)
            is_confirmed.add(best)
            if harm_of(scored[best], self.config):
                return best

    def _confirmed(self, found: Scored) -> Scored:
        if not self._has_rules:
            return confirmed(self.selector, self._wide(), found)
        budgets = strict_budget(self.config)
        return confirmed_unscored(budgets, self.selector.strengths, self._wide(), found)

    def _wide(self) -> Bench:
        # A new one each time: who is confirmed first must not pay for what others use, too.
        return Bench(self.target, self._confirming, self.config, self._confirming_encoded)

    @property
    def _confirming(self) -> Sequence[TwinPrompt]:
        return self.splits.confirming or self.splits.validation

    @cached_property
    def _confirming_encoded(self) -> EncodedTwins:
        return encode_twins(self.target, self._confirming)
