"""The cells of a sweep: which sites, edits and strengths were asked for."""

from collections.abc import Sequence
from typing import get_args

from isthmus.core.errors import ConfigError, SiteError
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.arms import Arm
from isthmus.workflows.config import EditKind, RunConfig, require_strength
from isthmus.workflows.selection import usable_strengths
from isthmus.workflows.twin_directions import at_one_site, origin_of


def cells_of(
    direction: Direction,
    sites: Sequence[Site],
    edits: Sequence[EditKind],
    positions: str,
    config: RunConfig,
) -> list[Arm]:
    """Returns an arm for every site, edit and strength.

    Args:
        direction: Has vectors at all of the sites.
        sites: Where it is tried.
        edits: What is tried.
        positions: Where in the text.
        config: Strengths and seed.

    Returns:
        Arms, site by site.
    """
    origin = origin_of(direction)
    kind = "native" if origin.map_method is None else "transferred"
    return [
        Arm(
            kind,
            site,
            positions,
            edit,
            strength,
            at_one_site(direction, site),
            map_method=origin.map_method,
            source_sites=origin.source_sites,
            seed=config.seed,
        )
        for site in sites
        for edit in edits
        for strength in usable_strengths(edit, config.strengths)
    ]


def sites_of(
    lm: LanguageModel, direction: Direction, given: str | Sequence[str | int | float]
) -> tuple[Site, ...]:
    """Returns the sites that are tried.

    Args:
        lm: The target.
        direction: What is tried.
        given: `all` of the direction's sites, or some of them.

    Returns:
        Sites at which the direction has vectors.

    Raises:
        SiteError: If it has none at one of them.
    """
    if given == "all":
        return direction.sites
    wanted = lm.sites(given if isinstance(given, str) else tuple(given))
    missing = [str(site) for site in wanted if site not in direction.by_site]
    if missing:
        raise SiteError(
            f"the direction has no vectors at {', '.join(missing)}: it was learned at "
            f"{', '.join(map(str, direction.sites))}; choose among these, or learn it there, too"
        )
    return wanted


def edits_of(given: str | Sequence[EditKind]) -> tuple[EditKind, ...]:
    """Returns the edits that are tried, each once.

    Args:
        given: Names, in one text with commas or as a list.

    Returns:
        Edits in their order.

    Raises:
        ConfigError: If one is unknown or there is none.
    """
    names = [one.strip() for one in given.split(",")] if isinstance(given, str) else list(given)
    known = get_args(EditKind)
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise ConfigError(f"no edits {given!r}: name some of {', '.join(known)}")
    return tuple(dict.fromkeys(edit for name in names for edit in known if edit == name))


def strengths_of(given: str | Sequence[float]) -> list[float]:
    """Returns the strengths that are tried, in order.

    Args:
        given: Numbers above 0, in one text with commas or as a list.

    Returns:
        Strengths.

    Raises:
        ConfigError: If something is no number.
        StrengthError: If a strength is out of range.
    """
    parts = given.split(",") if isinstance(given, str) else list(given)
    try:
        return sorted({require_strength(float(one)) for one in parts})
    except ValueError:
        raise ConfigError(f"no strengths {given!r}: give numbers such as 0.5,1,2") from None
