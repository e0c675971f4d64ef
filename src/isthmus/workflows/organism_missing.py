"""Builds the organisms that neither come with the package nor lie in the cache, once."""

from collections.abc import Sequence

from isthmus.core.errors import OrganismError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.models.organisms import cache_folder, packed_folder
from isthmus.workflows.organism_build import BuiltOrganism, build_organism
from isthmus.workflows.organism_recipes import FineTuneRecipe, recipe_named

SECONDS_PER_STEP = 0.3
"""What a step of 64 texts took in the middle, for models of a million parameters on one core."""


def missing_organisms(names: Sequence[str]) -> tuple[str, ...]:
    """Returns what has to be built before some organisms can be used.

    Args:
        names: Names of organisms, without `organism:`.

    Returns:
        Those that are neither shipped nor built, each after the base that it is tuned from.

    Raises:
        OrganismError: If one of these has no recipe.
    """
    missing: dict[str, None] = {}
    for name in names:
        if _is_there(name):
            continue
        recipe = recipe_named(name)
        if isinstance(recipe, FineTuneRecipe):
            below = [one for one in (recipe.base, recipe.start) if one is not None]
            missing |= dict.fromkeys(missing_organisms(below))
        missing[name] = None
    return tuple(missing)


def ensure_organisms(
    names: Sequence[str], progress: Progress | None = None
) -> tuple[BuiltOrganism, ...]:
    """Makes sure that organisms can be loaded, building into the cache what is missing.

    Every organism appears in the cache as a whole when it has passed its gate, so that building
    which is stopped goes on with the next one.

    Args:
        names: Names of organisms, without `organism:`.
        progress: Who shows progress, and is told what is built and about how long that takes.

    Returns:
        What was built.

    Raises:
        OrganismError: If one has no recipe, or misses its gate.
        OutputError: If the cache cannot be written to.
    """
    shown, missing = progress or SilentProgress(), missing_organisms(names)
    if missing:
        steps = sum(recipe_named(name).settings.n_steps for name in missing)
        minutes = max(1, round(steps * SECONDS_PER_STEP / 60))
        shown.note(
            f"to be trained once and kept in {cache_folder() / 'built'}: {', '.join(missing)}; "
            f"about {minutes} minutes on one core"
        )
    built = []
    for name in missing:
        shown.note(f"training {name}")
        built.append(build_organism(name, progress=shown))
    return tuple(built)


def _is_there(name: str) -> bool:
    try:
        packed_folder(name)
    except OrganismError:
        return False
    return True
