"""Confirms a chosen strength on more benign prompts than chose it.

Few prompts that all stay right say little: of 48, none is lost in one case of four where three in a
hundred are. What validation chose is therefore read once on the benign prompts of more questions,
and where it does harm there, a gentler strength is taken.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from isthmus.workflows.bench import Bench
from isthmus.workflows.selection import (
    LATER_LAYER_TOLERANCE,
    Scored,
    Selector,
    harm_of,
    order_of,
)


def confirmed(selector: Selector, wide: Bench, found: Scored) -> Scored:
    """Returns a chosen strength, or where it does harm on more prompts, a gentler one.

    Of the gentler ones that keep both budgets there, the gentlest is taken whose effect is as good
    as the best's up to `LATER_LAYER_TOLERANCE`: the largest that just keeps them owes it to chance.

    Args:
        selector: What chose.
        wide: Bench on more questions of the same split; only its benign prompts are read.
        found: What was chosen; left unchanged.

    Returns:
        `found`, or a gentler strength at its place, with the damage on the benign prompts of
        `wide`. `found` where no strength keeps both budgets there, where it kept them on fewer
        prompts no more, and where there are no more prompts.
    """
    if len(wide.twins) <= len(selector.fine.twins) or harm_of(found, selector.config):
        return found
    strength = found.arm.strength
    first = _on_more_prompts(wide, found)
    if strength is None or not harm_of(first, selector.config):
        return first
    kept, top = first, -math.inf
    for dose in _gentler(strength, selector.strengths):
        tried = _on_more_prompts(wide, replace(found, arm=found.arm.at(dose)))
        if harm_of(tried, selector.config):
            continue
        (again,) = selector.doses(selector.fine, tried.arm, [dose])
        if order_of(again.effect) < top - LATER_LAYER_TOLERANCE:
            break
        top = max(top, order_of(again.effect))
        kept = replace(again, damage=tried.damage, accuracy_loss=tried.accuracy_loss)
    return kept


def _gentler(strength: float, strengths: Sequence[float]) -> list[float]:
    """Returns what is below a strength, largest first: those given and two between each two."""
    below = sorted((s for s in strengths if s < strength), reverse=True)
    found = []
    for upper, lower in itertools.pairwise([strength, *below]):
        step = (upper - lower) / 3
        found += [round(upper - step, 4), round(upper - 2 * step, 4), lower]
    return found


def _on_more_prompts(wide: Bench, scored: Scored) -> Scored:
    change = wide.benign_change(scored.arm)
    damage = float(change.divergence.double().mean())
    return replace(scored, damage=damage, accuracy_loss=change.accuracy_loss)
