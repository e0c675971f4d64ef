"""`generate`: greedy completions, with or without an intervention."""

from collections.abc import Sequence
from pathlib import Path

from isthmus.core.errors import NoEditError, SiteError
from isthmus.core.identity import require_same_model
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.directions.files import load_direction
from isthmus.interventions.intervention import Intervention
from isthmus.models.batching import no_edits
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import GenerationResult, generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.arms import Way, intervention_for
from isthmus.workflows.config import Dtype, EditKind, require_strength
from isthmus.workflows.twin_directions import at_one_site

CARRY_FIRST = (
    "carry it there first: isthmus learn-map, then isthmus transfer, or learn one on this model"
)


def direction_at(
    lm: LanguageModel, given: Direction | str | Path, site: Site | str | int | float | None
) -> Direction:
    """Loads a direction, checks that it belongs to the model, and reduces it to one site.

    Args:
        lm: Model that will be edited.
        given: A direction or its folder.
        site: Which of its sites; may be left out when it has only one.

    Returns:
        A direction of one site.

    Raises:
        IdentityError: If the direction belongs to another model.
        SiteError: If the site does not exist, or none is given and there are several.
    """
    direction = given if isinstance(given, Direction) else load_direction(Path(given))
    require_same_model("direction", direction.model, lm.identity, CARRY_FIRST)
    if site is not None:
        return at_one_site(direction, lm.site(site))
    if len(direction.sites) > 1:
        raise SiteError(
            f"the direction has {len(direction.sites)} sites "
            f"({', '.join(map(str, direction.sites))}): name one with --site"
        )
    return direction


def generate(
    model: str | LanguageModel,
    prompts: str | Sequence[str],
    *,
    direction: Direction | str | Path | None = None,
    site: Site | str | int | float | None = None,
    edit: EditKind = "add",
    positions: str | None = None,
    strength: float = 1.0,
    way: Way = "removal",
    trigger: str | None = None,
    max_new_tokens: int = 48,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> GenerationResult:
    """Completes prompts greedily, with an intervention when a direction is given.

    Args:
        model: Hub name, local folder, `organism:NAME`, or a loaded model.
        prompts: One user message or several.
        direction: A direction of this model, or its folder; without one nothing is edited.
        site: Which of the direction's sites; may be left out when it has only one.
        edit: `add`, `ablate`, `set_coordinate` or `replace`.
        positions: Where; the positions at which the direction was learned when not given.
        strength: In units of the direction's norm, from -1000 to 1000.
        way: `removal` works against the direction, `induction` along it.
        trigger: The trigger in the prompts, for positions `trigger`.
        max_new_tokens: Length of the completions.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …

    Returns:
        Completions in the order of the prompts, and how many positions were edited.

    Raises:
        NoEditError: If an intervention was asked for and edited nothing.
        IdentityError: If the direction belongs to another model.
        StrengthError: If the strength is out of range.
    """
    require_strength(strength)
    lm = (
        model
        if isinstance(model, LanguageModel)
        else load_language_model(model, dtype=dtype, device=device)
    )
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    triggers = None if trigger is None else [trigger if trigger in p else None for p in asked]
    encoded = encode_prompts(lm.tokenizer, asked, triggers=triggers)
    intervention: Intervention | None = None
    if direction is not None:
        here = direction_at(lm, direction, site)
        intervention = intervention_for(here, edit, positions or here.positions, strength, way)
    result = generate_greedy(
        lm,
        encoded,
        max_new_tokens=max_new_tokens,
        edits=no_edits if intervention is None else intervention.place,
    )
    if intervention is not None and not result.n_edited:
        raise NoEditError(
            f"nothing was edited at positions {intervention.positions.spelling}: "
            "name the trigger with --trigger, or choose other positions"
        )
    return result
