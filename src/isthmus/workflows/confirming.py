"""Confirms a chosen strength on more benign prompts than chose it.

Few prompts that all stay right say little: of 48, none is lost in one case of four where three in a
hundred are. What validation chose is therefore read once on the benign prompts of more questions,
and where it does harm there, the next gentler strength is taken that does not.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from isthmus.workflows.bench import Bench
from isthmus.workflows.selection import WITHIN_KL, Scored, Selector, harm_of, two_between


def confirmed(selector: Selector, wide: Bench, found: Scored) -> Scored:
    """Returns a chosen strength, or where it does harm on more prompts, the next gentler one.

    Args:
        selector: What chose.
        wide: Bench on more questions of the same split; only its benign prompts are read.
        found: What was chosen; left unchanged.

    Returns:
        `found` where it keeps both budgets on the benign prompts of `wide`, where it kept them not
        even on fewer, and where there are no more. Else the largest gentler strength at its place
        that keeps them on all; where none does, the largest that keeps that of divergence, else
        the least damaging, with its damage on the prompts of `wide`.
    """
    if len(wide.twins) <= len(selector.fine.twins) or harm_of(found, selector.config):
        return found
    strength = found.arm.strength
    first = _on_more_prompts(wide, found)
    if strength is None or not _harm_of(first, selector, wide):
        return found
    harmful = [first]
    for dose in _gentler(strength, selector.strengths):
        tried = _on_more_prompts(wide, replace(found, arm=found.arm.at(dose)))
        if _harm_of(tried, selector, wide):
            harmful.append(tried)
            continue
        (again,) = selector.doses(selector.fine, tried.arm, [dose])
        if not harm_of(again, selector.config):
            return again
    # As where nothing keeps both budgets while places are chosen: divergence counts alone.
    within_kl = (one for one in harmful if harm_of(one, selector.config) == WITHIN_KL)
    least = next(within_kl, min(harmful, key=lambda one: one.damage))
    return first if least is first else _with_effect(selector, least)


def _harm_of(tried: Scored, selector: Selector, wide: Bench) -> int:
    # One lost answer of fewer than a hundred is more than a hundredth, and no sign of harm.
    n_lost = round(tried.accuracy_loss * len(wide.encoded.benign))
    return harm_of(replace(tried, accuracy_loss=0.0) if n_lost <= 1 else tried, selector.config)


def _with_effect(selector: Selector, tried: Scored) -> Scored:
    if tried.arm.strength is None:
        return tried
    (again,) = selector.doses(selector.fine, tried.arm, [tried.arm.strength])
    return replace(again, damage=tried.damage, accuracy_loss=tried.accuracy_loss)


def _gentler(strength: float, strengths: Sequence[float]) -> list[float]:
    """Returns what is below a strength, largest first: those given and two between each two."""
    below = sorted((s for s in strengths if s < strength), reverse=True)
    found = []
    for upper, lower in itertools.pairwise([strength, *below]):
        found += [*two_between(upper, lower), lower]
    return found


def _on_more_prompts(wide: Bench, scored: Scored) -> Scored:
    change = wide.benign_change(scored.arm)
    damage = float(change.divergence.double().mean())
    return replace(scored, damage=damage, accuracy_loss=change.accuracy_loss)
