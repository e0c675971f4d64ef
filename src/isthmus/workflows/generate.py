"""`generate`: greedy completions, with or without an intervention."""

from collections.abc import Sequence
from pathlib import Path

from isthmus.carrying.switch_files import load_switch
from isthmus.carrying.switches import Switch
from isthmus.core.errors import ConfigError, NoEditError, SiteError
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


def switch_of(lm: LanguageModel, given: Switch | str | Path) -> Switch:
    """Loads a switch and checks that the model is the one that carries it.

    Args:
        lm: Model that will be edited.
        given: A switch or its folder.

    Returns:
        The switch.

    Raises:
        IdentityError: If the switch belongs to another model.
    """
    switch = given if isinstance(given, Switch) else load_switch(Path(given))
    switch.require_carrier(lm.identity)
    return switch


def generate(
    model: str | LanguageModel,
    prompts: str | Sequence[str],
    *,
    direction: Direction | str | Path | None = None,
    switch: Switch | str | Path | None = None,
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
    """Completes prompts greedily, with an intervention when a direction or a switch is given.

    Nothing stays on the model: the next call without one gives the plain model's completions.

    Args:
        model: Hub name, local folder, `organism:NAME`, or a loaded model.
        prompts: One user message or several.
        direction: A direction of this model, or its folder.
        switch: A switch that this model carries, or its folder. It says itself where it acts and
            what it does, so that of the settings below only `strength` and `trigger` apply.
        site: Which of the direction's sites; may be left out when it has only one.
        edit: `add`, `ablate`, `set_coordinate` or `replace`.
        positions: Where; the positions at which the direction was learned when not given.
        strength: In units of the direction's norm, from -1000 to 1000; of a switch 1 is on, 0 off.
        way: `removal` works against the direction, `induction` along it.
        trigger: The trigger in the prompts, for positions `trigger`.
        max_new_tokens: Length of the completions.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …

    Returns:
        Completions in the order of the prompts, and how many positions were edited.

    Raises:
        NoEditError: If an intervention was asked for and edited nothing.
        IdentityError: If the direction or the switch belongs to another model.
        ConfigError: If both are given, or a switch with settings of a direction.
        StrengthError: If the strength is out of range.
    """
    require_strength(strength)
    if switch is not None:
        _refuse_beside_a_switch(
            direction=direction,
            site=site,
            edit=None if edit == "add" else edit,
            positions=positions,
            way=None if way == "removal" else way,
        )
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
    elif switch is not None:
        intervention = switch_of(lm, switch).intervention(strength)
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


def _refuse_beside_a_switch(**given: object) -> None:
    """Refuses settings that say where and how a direction acts."""
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ConfigError(
            f"a switch and {', '.join(wrong)} were given: a switch says itself where it acts and "
            "what it does, leave one of them out"
        )
