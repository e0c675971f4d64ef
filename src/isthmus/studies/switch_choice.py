"""Validation chooses among switches; the chosen one gets its controls."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isthmus.carrying.switches import rotated_switch
from isthmus.evaluation.measurements import Measurement
from isthmus.studies.switch_arms import Candidate
from isthmus.studies.switch_measuring import SwitchArm, SwitchBench
from isthmus.studies.switch_scores import chosen_switch, score_of
from isthmus.workflows.learn_switch import SwitchRecipe

N_RANDOM = 2
"""Draws of the rotated control."""


@dataclass(frozen=True)
class SwitchChoice:
    """All candidates as arms, and which of them validation chose.

    Attributes:
        arms: All of them, then the controls of the chosen one.
        measured: What they did on validation.
        notes: What was chosen, in words.
    """

    arms: list[SwitchArm]
    measured: list[Measurement]
    notes: list[str]


def choose_switch(candidates: Mapping[str, Candidate], validation: SwitchBench) -> SwitchChoice:
    """Chooses the smallest switch that does what is asked, closed form or trained.

    Args:
        candidates: Switches by label.
        validation: Chooses.

    Returns:
        The arms, controls of the chosen one among them; none where there is no candidate.
    """
    if not candidates:
        return SwitchChoice([], [], [])
    arms = {label: one.maker.arm(one.switch, label) for label, one in candidates.items()}
    measured = {label: validation.measure(arm) for label, arm in arms.items()}
    scores = {label: score_of(rows) for label, rows in measured.items()}
    label = chosen_switch({one: (arms[one].n_parameters, scores[one]) for one in arms})
    chosen, score = candidates[label], scores[label]
    note = (
        f"to {chosen.maker.to}: of {len(arms)} switches validation chose {label} "
        f"({arms[label].n_parameters} parameters): right answers back {score.restored:.3f}, KL on "
        f"plain prompts {score.plain_kl:.4f}"
        + ("" if score.suffices else "; no switch met both aims")
    )
    return SwitchChoice(
        [*arms.values(), *_controls(chosen, label)],
        [row for rows in measured.values() for row in rows],
        [note],
    )


def _controls(chosen: Candidate, label: str) -> list[SwitchArm]:
    """Returns turned draws of a switch, and its closed form on shuffled pairs."""
    maker, switch = chosen.maker, chosen.switch
    arms = []
    for draw in range(N_RANDOM):
        seed = maker.seed + draw
        turned = rotated_switch(switch, torch.Generator().manual_seed(seed))
        arms.append(maker.arm(turned, label, "random", seed))
    rank = max(edit.rank for edit in switch.edits.values())
    recipe = SwitchRecipe(
        rank=rank, sites=switch.sites, positions=switch.positions, shuffle_seed=maker.seed
    )
    return [*arms, maker.arm(maker.learn_with(recipe), label, "shuffled_map", maker.seed)]
