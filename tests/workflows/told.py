"""Selectors and benches that are told what they would measure."""

from collections.abc import Sequence

import torch
from typing_extensions import override

from isthmus.models.changes import BenignChange
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.selection import Selector

Known = tuple[float, float, float]
"""Effect, damage and lost accuracy."""


class Told(Selector):
    """Knows effect, damage and lost accuracy of every place without measuring."""

    def tell(self, coarse: dict[int, Known], fine: dict[int, dict[float, Known]]) -> None:
        self.known, self.seen = (coarse, fine), set()

    def known_of(self, bench: Bench, arm: Arm) -> Known:
        coarse, fine = self.known
        layer = arm.site.layer
        if bench is self.coarse:
            return coarse[layer]
        self.seen.add(layer)
        return fine[layer][arm.strength]

    @override
    def _effects(self, bench: Bench, arms: Sequence[Arm]) -> list[float]:
        return [self.known_of(bench, arm)[0] for arm in arms]

    @override
    def _damages(self, bench: Bench, arms: Sequence[Arm]) -> list[tuple[float, float]]:
        return [self.known_of(bench, arm)[1:] for arm in arms]


class WideBench(Bench):
    """Knows how far its benign prompts diverge and how many lose their answer, by strength."""

    def tell(self, known: dict[float, tuple[float, int]]) -> None:
        self.known, self.asked = known, []

    @override
    def benign_change(self, arm: Arm) -> BenignChange:
        self.asked.append(arm.strength)
        divergence, n_lost = self.known[arm.strength]
        n = len(self.twins)
        right = torch.ones(n, dtype=torch.bool)
        kept = torch.arange(n) >= n_lost
        return BenignChange(torch.full((n,), divergence), right, kept, torch.zeros(n))
