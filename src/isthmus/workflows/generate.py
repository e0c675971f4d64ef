"""`generate`: greedy completions, with or without an intervention, for all or behind a gate."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from isthmus.carrying.switch_files import load_switch
from isthmus.carrying.switches import Switch
from isthmus.core.errors import ConfigError, NoEditError, SiteError
from isthmus.core.gates import GateReading
from isthmus.core.identity import require_same_model
from isthmus.core.options import require_word
from isthmus.core.sites import GivenSite
from isthmus.core.texts import EncodedText
from isthmus.directions.direction import Direction
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.subspace import Subspace
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.per_row import PerRow
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import GenerationResult, generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.arms import Way, intervention_for, require_no_strength
from isthmus.workflows.asked_prompts import AskedPrompt, asked_prompts
from isthmus.workflows.config import Dtype, EditKind
from isthmus.workflows.gating import GivenProbe, PromptGate, probe_of
from isthmus.workflows.given_directions import GivenDirection, loaded_direction
from isthmus.workflows.subspace_arms import subspace_intervention
from isthmus.workflows.twin_directions import at_one_site

CARRY_FIRST = (
    "carry it there first: isthmus learn-map, then isthmus transfer, or learn one on this model"
)


def direction_at(
    lm: LanguageModel, given: GivenDirection, site: GivenSite | None
) -> Direction | Subspace:
    """Loads a direction or a subspace, checks that it is of the model, and reduces it to one site.

    Args:
        lm: Model that will be edited.
        given: A direction or a subspace, or its folder.
        site: Which of its sites; may be left out when it has only one.

    Returns:
        What was given, at one site.

    Raises:
        IdentityError: If it belongs to another model.
        SiteError: If the site does not exist, or none is given and there are several.
    """
    direction = loaded_direction(given)
    require_same_model(direction.WHAT, direction.model, lm.identity, CARRY_FIRST)
    if site is not None:
        return at_one_site(direction, lm.site(site))
    if len(direction.sites) > 1:
        raise SiteError(
            f"the {direction.WHAT} has {len(direction.sites)} sites "
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
    model: str | Path | LanguageModel,
    prompts: str | Sequence[str] | None = None,
    *,
    file: str | Path | None = None,
    direction: GivenDirection | Sequence[GivenDirection | None] | None = None,
    switch: Switch | str | Path | None = None,
    gate: GivenProbe | None = None,
    site: GivenSite | None = None,
    edit: EditKind = "add",
    positions: str | Sequence[str | None] | None = None,
    strength: float | Sequence[float] = 1.0,
    way: Way = "removal",
    trigger: str | None = None,
    max_new_tokens: int = 48,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> GenerationResult:
    """Completes prompts greedily, with an intervention when a direction or a switch is given.

    Nothing stays on the model: the next call without one gives the plain model's completions.
    Direction, strength and positions may be given for each prompt, as sequences or in the lines of
    a file; then every prompt with a direction must be edited somewhere.

    Args:
        model: Hub name, local folder, `organism:NAME`, or a loaded model.
        prompts: One user message or several.
        file: Prompts in their place: JSONL with `prompt` and, where a line has its own, `direction`
            (null for none), `strength` and `positions`.
        direction: A direction or a subspace of this model, or its folder; or one or None for each
            prompt.
        switch: A switch that this model carries, or its folder. It says itself where it acts and
            what it does, so that of the settings below only `gate`, `strength` and `trigger`
            apply.
        gate: A probe of this model, or its folder. Only prompts that it scores above its threshold
            are edited, others are continued as by the plain model. It is asked once per prompt, on
            the unedited model's states; an edit then holds for generated tokens, too.
        site: Which of the direction's sites; may be left out when it has only one.
        edit: `add`, `add_keeping_norm`, `ablate`, `set_coordinate` or `replace`; of a subspace
            `ablate` or `set_coordinate`.
        positions: Where; the positions at which the direction was learned when not given. One for
            all prompts, or one or None for each.
        strength: In units of the direction's norm, from -1000 to 1000; of a switch 1 is on, 0 off.
            One for all prompts, or one for each; `ablate` and `replace` have none.
        way: `removal` works against the direction, `induction` along it.
        trigger: The trigger in the prompts, for positions `trigger`.
        max_new_tokens: Length of the completions.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …

    Returns:
        Completions in the order of the prompts, how many positions were edited, and what the gate
        decided.

    Raises:
        NoEditError: If an intervention was asked for and edited nothing, though the gate was open;
            of interventions for single prompts, if one of them did.
        IdentityError: If the direction, the subspace, the switch or the gate belongs to another
            model.
        ConfigError: If both are given, a switch with settings of a direction, settings without
            either, for another number of prompts, of an unknown kind, or of an edit that a subspace
            does not have.
        DataError: If the file or a line of it cannot be used.
        StrengthError: If the strength is out of range, or the edit has none.
    """
    require_word("edit", edit, get_args(EditKind))
    require_word("way", way, get_args(Way))
    asked = asked_prompts(prompts, file, direction, strength, positions)
    _require_use(
        asked.rows,
        has_switch=switch is not None,
        has_gate=gate is not None,
        site=site,
        edit=None if edit == "add" else edit,
        positions=next((row.positions for row in asked.rows if row.positions), None),
        way=None if way == "removal" else way,
    )
    for row in asked.rows:
        if row.direction is not None:
            require_no_strength(edit, row.strength)
    lm = (
        model
        if isinstance(model, LanguageModel)
        else load_language_model(model, dtype=dtype, device=device)
    )
    texts = [row.prompt for row in asked.rows]
    triggers = None if trigger is None else [trigger if trigger in p else None for p in texts]
    encoded = encode_prompts(lm.tokenizer, texts, triggers=triggers)
    rows = PerRow(
        _with_a_switch(switch_of(lm, switch), asked.rows)
        if switch is not None
        else _with_directions(lm, asked.rows, site, edit, way)
    )
    opened = None if gate is None else _opened(lm, probe_of(lm, gate), encoded, trigger)
    if opened is not None:
        rows = rows.only_where(opened.is_open)
    result = generate_greedy(lm, encoded, max_new_tokens=max_new_tokens, edits=rows.place)
    result = replace(result, gate=opened)
    if asked.differ:
        rows.require_edits(result.n_edited_by_text)
    intervention = next((one for one in rows.interventions if one is not None), None)
    if intervention is not None and not result.n_edited:
        raise NoEditError(
            f"nothing was edited at positions {intervention.positions.spelling}: "
            "name the trigger with --trigger, or choose other positions"
        )
    return result


def _opened(
    lm: LanguageModel, probe: ModelProbe, prompts: Sequence[EncodedText], trigger: str | None
) -> GateReading:
    """Asks a gate; one that reads a trigger which no prompt holds is closed for all of them."""
    is_absent = trigger is not None and all(one.trigger is None for one in prompts)
    if probe.positions == "trigger" and is_absent:
        return GateReading((None,) * len(prompts))
    return PromptGate(probe).read(lm, prompts)


def _with_a_switch(switch: Switch, rows: Sequence[AskedPrompt]) -> tuple[Intervention, ...]:
    made = {row.strength: switch.intervention(row.strength) for row in rows}
    return tuple(made[row.strength] for row in rows)


def _with_directions(
    lm: LanguageModel,
    rows: Sequence[AskedPrompt],
    site: GivenSite | None,
    edit: EditKind,
    way: Way,
) -> tuple[Intervention | None, ...]:
    """Builds every prompt's intervention; what prompts share is loaded and built once."""
    loaded: dict[int | str, Direction | Subspace] = {}
    made: dict[Hashable, Intervention] = {}
    found: list[Intervention | None] = []
    for row in rows:
        if row.direction is None:
            found.append(None)
            continue
        is_loaded = isinstance(row.direction, Direction | Subspace)
        name = id(row.direction) if is_loaded else str(row.direction)
        if name not in loaded:
            loaded[name] = direction_at(lm, row.direction, site)
        here = loaded[name]
        settings = (edit, row.positions or here.positions, row.strength, way)
        if (name, settings) not in made:
            made[name, settings] = (
                subspace_intervention(here, *settings)
                if isinstance(here, Subspace)
                else intervention_for(here, *settings)
            )
        found.append(made[name, settings])
    return tuple(found)


def _require_use(
    rows: Sequence[AskedPrompt], *, has_switch: bool, has_gate: bool, **given: object
) -> None:
    """Refuses settings of an intervention that none of the prompts has."""
    direction = next((row.direction for row in rows if row.direction is not None), None)
    settings = {"direction": direction, **given}
    found = [name for name, value in settings.items() if value is not None]
    if has_switch and found:
        raise ConfigError(
            f"a switch and {', '.join(found)} were given: a switch says itself where it acts and "
            "what it does, leave one of them out"
        )
    if not has_switch and direction is None:
        found += ["strength"] * any(row.strength != 1.0 for row in rows) + ["gate"] * has_gate
        if found:
            raise ConfigError(
                f"{', '.join(found)} given, but no prompt has a direction: name a direction or a "
                "switch, or leave the settings out"
            )
