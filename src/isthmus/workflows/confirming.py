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
    WITHIN_KL,
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
        `wide`. Where none keeps both budgets there, the largest that keeps that of divergence,
        else the least damaging. `found` unchanged where it kept them not even on fewer prompts,
        and where there are no more prompts.
    """
    if len(wide.twins) <= len(selector.fine.twins) or harm_of(found, selector.config):
        return found
    strength = found.arm.strength
    first = _on_more_prompts(wide, found)
    if strength is None or not harm_of(first, selector.config):
        return first
    kept, top, harmful = None, -math.inf, [first]
    for dose in _gentler(strength, selector.strengths):
        tried = _on_more_prompts(wide, replace(found, arm=found.arm.at(dose)))
        if harm_of(tried, selector.config):
            harmful.append(tried)
            continue
        again = _with_effect(selector, tried)
        if order_of(again.effect) < top - LATER_LAYER_TOLERANCE:
            break
        kept, top = again, max(top, order_of(again.effect))
    if kept is not None:
        return kept
    # As where nothing keeps both budgets while places are chosen: divergence counts alone.
    within_kl = (one for one in harmful if harm_of(one, selector.config) == WITHIN_KL)
    least = next(within_kl, min(harmful, key=lambda one: one.damage))
    return first if least is first else _with_effect(selector, least)


def _with_effect(selector: Selector, tried: Scored) -> Scored:
    """Returns an arm with its effect and, as known from more prompts, its damage."""
    if tried.arm.strength is None:
        return tried
    (again,) = selector.doses(selector.fine, tried.arm, [tried.arm.strength])
    return replace(again, damage=tried.damage, accuracy_loss=tried.accuracy_loss)


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
