"""`transfer`: carries a direction through a map, or through several one after the other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isthmus.carrying.chains import carry_along, steps_of
from isthmus.carrying.directions import TransferRule
from isthmus.core.artifacts import require_free
from isthmus.core.provenance import package_versions, source_commit
from isthmus.directions.direction import Direction
from isthmus.directions.files import KIND, load_direction, save_direction
from isthmus.maps.files import FittedMap, load_map


def transfer(
    direction: Direction | str | Path,
    map: FittedMap | str | Path | Sequence[FittedMap | str | Path],  # noqa: A002 - the verb's own
    *,
    out: str | Path | None = None,
    rule: TransferRule = "auto",
) -> Direction:
    """Carries a direction of the map's source model to its target model.

    Several maps, in the order of the way, carry it through several models: A → B, B → C.
    Neighbours between the same two models lead to several sites of one model, all of which the next
    map may read.

    Args:
        direction: A direction or its folder, learned at every site that the map reads.
        map: A fitted map or its folder, or several of them.
        out: Folder to write; nothing is written when not given.
        rule: `auto` (the linear part of affine maps, the difference of images otherwise), or one of
            `linear`, `difference`, `map_of_vector`.

    Returns:
        The direction in the last target, at the target sites of the last maps.

    Raises:
        ConfigError: If no map is given, or there is no such rule.
        OutputError: If the place is taken or cannot be written to.
        IdentityError: If the direction belongs to another model than the map's source, or a map
            does not start where the one before it ended.
        SiteError: If the direction was not learned at, or not carried to, a site that a map reads.
    """
    require_free(out, KIND)
    given = direction if isinstance(direction, Direction) else load_direction(Path(direction))
    every = [map] if isinstance(map, FittedMap | str | Path) else list(map)
    fitted = [one if isinstance(one, FittedMap) else load_map(Path(one)) for one in every]
    carried = _certified(carry_along(given, steps_of(fitted), rule))
    if out is not None:
        save_direction(Path(out), carried)
    return carried


def _certified(carried: Direction) -> Direction:
    """Adds to a certificate what it was made with."""
    if carried.certificate is None:
        return carried
    certificate = replace(carried.certificate, versions=package_versions(), commit=source_commit())
    return replace(carried, certificate=certificate)
