"""The controls of a transferred direction: what an edit as large does without the knowledge."""

import torch

from isthmus.carrying.directions import carry_direction
from isthmus.carrying.scaling import match_norm, random_direction_like
from isthmus.core.errors import ConfigError, FitError
from isthmus.core.progress import SilentProgress
from isthmus.directions.direction import Direction
from isthmus.maps.files import FittedMap
from isthmus.workflows.arms import Arm, control_edit
from isthmus.workflows.config import RunConfig
from isthmus.workflows.contrast_maps import Contrasts
from isthmus.workflows.map_fitting import MapEnds, fit_map, shuffled_map
from isthmus.workflows.pairing import PairedRows, Part


def control_arms(
    transferred: Arm,
    direction: Direction,
    rows: dict[Part, PairedRows],
    ends: MapEnds,
    config: RunConfig,
    contrasts: Contrasts | None = None,
) -> list[Arm]:
    """Builds the controls at the place and strength of a transferred direction.

    `random`: random vectors as long as the transferred ones. `shuffled_map` and `identity_map`:
    the source's direction through a map that knows nothing, scaled to the same length. `noise`:
    Gaussian noise as long, another at every token. `mean_ablation`: the positions' states become
    the mean state of the texts. `prompt_only`: the other trigger in front, no edit.

    Args:
        transferred: The arm to be controlled.
        direction: Its direction in the source.
        rows: Paired activations at its target site.
        ends: Models and sites of its map.
        config: Seed, number of random draws.
        contrasts: Differences that its map was fitted on, too.

    Returns:
        Arms in the order in which results name them.
    """
    if transferred.direction is None or transferred.site is None:
        raise ConfigError("controls need a transferred direction")
    draws = [config.seed + i for i in range(config.n_random)]
    norms = transferred.direction.norms
    arms = [
        _like(transferred, "random", random_direction_like(transferred.direction, _seeded(s)), s)
        for s in draws
    ]
    arms.append(_like(transferred, "noise", transferred.direction, config.seed))
    ignorant: dict[str, FittedMap] = {
        "shuffled_map": shuffled_map(rows, ends, config.seed, contrasts),
        "identity_map": fit_map("identity", rows, ends, config.seed, SilentProgress()),
    }
    for condition, fitted in ignorant.items():
        try:
            carried = match_norm(carry_direction(direction, fitted), norms)
        except FitError:
            # An identity map into a narrower space may cut everything off: nothing to compare.
            continue
        arms.append(_like(transferred, condition, carried, config.seed))
    mean = {transferred.site: rows["train"].target.mean(0, keepdim=True)}
    place = (transferred.site, transferred.positions)
    arms.append(Arm("mean_ablation", *place, "replace", 1.0, seed=config.seed, mean=mean))
    arms.append(Arm("prompt_only", seed=config.seed))
    return arms


def _like(transferred: Arm, condition: str, direction: Direction, seed: int) -> Arm:
    edit = transferred.edit
    return Arm(
        condition,
        transferred.site,
        transferred.positions,
        "add" if condition == "noise" or edit is None else control_edit(edit),
        transferred.strength,
        direction,
        source_sites=transferred.source_sites,
        seed=seed,
    )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
