"""Confirms a chosen strength on more benign prompts than chose it.

Few prompts that all stay right say little: of 48, none is lost in one case of four where three in a
hundred are. What validation chose is therefore read once on the benign prompts of more questions,
and where it does harm there, the next gentler strength is taken that does not.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig
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
    least = _least_harmful(harmful, selector.config)
    return first if least is first else _with_effect(selector, least)


def confirmed_unscored(
    config: RunConfig, strengths: Sequence[float], wide: Bench, found: Scored
) -> Scored:
    """Returns a strength that was found without labels, or the next gentler harmless one.

    Args:
        config: The budgets.
        strengths: Those that may be used; two between each two are tried, too.
        wide: Bench whose benign prompts are read; nothing else of it is.
        found: What was found, with its effect; left unchanged.

    Returns:
        The largest strength at its place, from that of `found` down, that keeps both budgets on the
        benign prompts of `wide`; where none does, the largest that keeps that of divergence, else
        the least damaging. Damage is that on `wide`, a single lost answer is none; the effect stays
        that of `found`.
    """
    strength, harmful = found.arm.strength, []
    for dose in [strength] if strength is None else [strength, *_gentler(strength, strengths)]:
        at_dose = found if dose is None else replace(found, arm=found.arm.at(dose))
        tried = _forgiven(_on_more_prompts(wide, at_dose), wide)
        if not harm_of(tried, config):
            return tried
        harmful.append(tried)
    return _least_harmful(harmful, config)


def _least_harmful(harmful: Sequence[Scored], config: RunConfig) -> Scored:
    # As where nothing keeps both budgets while places are chosen: divergence counts alone.
    within_kl = (one for one in harmful if harm_of(one, config) == WITHIN_KL)
    return next(within_kl, min(harmful, key=lambda one: one.damage))


def _harm_of(tried: Scored, selector: Selector, wide: Bench) -> int:
    return harm_of(_forgiven(tried, wide), selector.config)


def _forgiven(tried: Scored, wide: Bench) -> Scored:
    # One lost answer of fewer than a hundred is more than a hundredth, and no sign of harm.
    n_lost = round(tried.accuracy_loss * len(wide.encoded.benign))
    return replace(tried, accuracy_loss=0.0) if n_lost <= 1 else tried


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
