"""`transfer`: carries a direction through a map."""

from pathlib import Path

from isthmus.carrying.directions import TransferRule, carry_direction
from isthmus.directions.direction import Direction
from isthmus.directions.files import load_direction, save_direction
from isthmus.maps.files import FittedMap, load_map


def transfer(
    direction: Direction | str | Path,
    map: FittedMap | str | Path,  # noqa: A002 - the verb's parameter, as on the command line
    *,
    out: str | Path | None = None,
    rule: TransferRule = "auto",
) -> Direction:
    """Carries a direction of the map's source model to its target model.

    Args:
        direction: A direction or its folder, learned at every site that the map reads.
        map: A fitted map or its folder.
        out: Folder to write; nothing is written when not given.
        rule: `auto` (the linear part of affine maps, the difference of images otherwise), or one of
            `linear`, `difference`, `map_of_vector`.

    Returns:
        The direction in the target, at the map's target site.

    Raises:
        IdentityError: If the direction belongs to another model than the map's source.
        SiteError: If it was not learned at a site that the map reads.
    """
    given = direction if isinstance(direction, Direction) else load_direction(Path(direction))
    fitted = map if isinstance(map, FittedMap) else load_map(Path(map))
    carried = carry_direction(given, fitted, rule)
    if out is not None:
        save_direction(Path(out), carried)
    return carried
