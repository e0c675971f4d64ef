"""What is done with a subspace: taken out, or set to where a class lies; as arms, with controls."""

from dataclasses import replace
from typing import get_args

import torch

from isthmus.carrying.subspaces import random_subspace_like
from isthmus.core.edits import Edit
from isthmus.core.errors import ConfigError
from isthmus.core.sites import Site
from isthmus.directions.subspace import SiteSubspace, Subspace
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.interventions.subspace import subspace_ablation, subspace_coordinates
from isthmus.workflows.arms import Arm, Way
from isthmus.workflows.config import EditKind

SUBSPACE_EDITS: tuple[EditKind, ...] = ("ablate", "set_coordinate")
"""What can be done with a subspace."""


def require_subspace_edit(edit: EditKind) -> None:
    """Refuses an edit that a subspace has no vector for (`ConfigError`)."""
    if edit not in SUBSPACE_EDITS:
        raise ConfigError(
            f"edit {edit!r} of a subspace, which has no one vector and no one state: use "
            f"{' or '.join(SUBSPACE_EDITS)}, or give a direction"
        )


def subspace_intervention(
    subspace: Subspace, edit: EditKind, positions: str, strength: float, way: Way
) -> Intervention:
    """Builds what turns a behaviour off or on in the subspaces of some sites.

    | edit | removal | induction |
    | --- | --- | --- |
    | `set_coordinate` | h + strength · (c₋ - h Qᵀ) Q, c₋ the clean mean's | the same with c₊ |
    | `ablate` | h - (h Qᵀ) Q | the same |

    Coordinates are set position by position unless they are pooled.

    Args:
        subspace: In the model that will be edited.
        edit: `ablate` or `set_coordinate`.
        positions: Where.
        strength: Fraction of the way to the coordinates; without meaning for `ablate`.
        way: Off or on.

    Returns:
        The intervention, ready to be placed on a batch.

    Raises:
        ConfigError: If a subspace does not have such an edit.
    """
    require_subspace_edit(edit)

    def edits_at(one: SiteSubspace) -> tuple[Edit, ...]:
        if edit == "ablate":
            return (subspace_ablation(one.basis),)
        is_on = way == "induction"
        wanted = one.positive_coordinates if is_on else one.negative_coordinates
        return tuple(subspace_coordinates(one.basis, row, strength) for row in wanted)

    by_site: dict[Site, tuple[Edit, ...]] = {
        site: edits_at(one) for site, one in subspace.by_site.items()
    }
    return Intervention(by_site, parse_positions(positions))


def subspace_arm(arm: Arm, subspace: Subspace) -> Arm:
    """Returns an arm that does its edit with a subspace rather than a direction.

    Args:
        arm: Condition, edit, positions and strength.
        subspace: What is used, at one site.

    Returns:
        The arm, at the subspace's site; its strength cannot be changed afterwards.

    Raises:
        ConfigError: If edit, positions or strength are missing, or a subspace has no such edit.
    """
    if arm.edit is None or arm.positions is None or arm.strength is None:
        raise ConfigError(f"the {arm.condition} arm has no edit, positions or strength")
    settings = arm.edit, arm.positions, arm.strength
    fixed: dict[Way, Intervention] = {
        way: subspace_intervention(subspace, *settings, way) for way in get_args(Way)
    }
    return replace(arm, site=subspace.sites[0], fixed=fixed)


def random_arms(arm: Arm, subspace: Subspace, n_draws: int) -> list[Arm]:
    """Returns the same edit in random subspaces of the same rank.

    Args:
        arm: What is controlled, at the place and strength of the subspace.
        subspace: The subspace.
        n_draws: How many.

    Returns:
        Arms of condition `random` with seeds from the arm's own on.
    """
    bare = replace(arm, condition="random", map_method=None)
    return [
        subspace_arm(
            replace(bare, seed=seed),
            random_subspace_like(subspace, torch.Generator().manual_seed(seed)),
        )
        for seed in range(arm.seed, arm.seed + n_draws)
    ]


def noise_arm(arm: Arm, subspace: Subspace) -> Arm:
    """Returns Gaussian noise as long as the classes lie apart in the subspace.

    Args:
        arm: What is controlled, at the place and strength of the subspace.
        subspace: The subspace.

    Returns:
        An arm of condition `noise`.

    Raises:
        ConfigError: If the arm has no positions or strength.
    """
    if arm.positions is None or arm.strength is None:
        raise ConfigError(f"the {arm.condition} arm has no positions or strength")
    vectors = {site: one.vectors for site, one in subspace.by_site.items()}
    noise = Intervention.noise(vectors, parse_positions(arm.positions), arm.seed, arm.strength)
    fixed: dict[Way, Intervention] = dict.fromkeys(get_args(Way), noise)
    bare = replace(arm, condition="noise", edit="add", map_method=None)
    return replace(bare, site=subspace.sites[0], fixed=fixed)
