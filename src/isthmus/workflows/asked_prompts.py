"""Prompts with what is done to each: from one setting for all, from sequences, from a file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isthmus.core.errors import ConfigError, DataError, IsthmusError
from isthmus.data.prompt_rows import PromptRow, prompt_rows
from isthmus.data.prompts import ROW_FIELDS
from isthmus.directions.direction import Direction
from isthmus.directions.subspace import Subspace
from isthmus.interventions.positions import parse_positions
from isthmus.workflows.config import require_strength
from isthmus.workflows.given_directions import GivenDirection

OWN_FIELDS = ("direction", "strength", "positions")
"""What a line of a file of prompts may say about its own prompt."""


@dataclass(frozen=True)
class AskedPrompt:
    """One prompt and how it is steered.

    Attributes:
        prompt: The user's message.
        direction: A direction or subspace of the model, or its folder; None for neither.
        strength: How strongly.
        positions: Where; None for where the direction was learned.
    """

    prompt: str
    direction: GivenDirection | None
    strength: float
    positions: str | None


@dataclass(frozen=True)
class AskedPrompts:
    """The prompts of one call.

    Attributes:
        rows: The prompts.
        differ: Whether prompts were given settings of their own.
    """

    rows: tuple[AskedPrompt, ...]
    differ: bool


def asked_prompts(
    prompts: str | Sequence[str] | None,
    file: str | Path | None,
    direction: GivenDirection | Sequence[GivenDirection | None] | None,
    strength: float | Sequence[float],
    positions: str | Sequence[str | None] | None,
) -> AskedPrompts:
    """Gives every prompt its direction, strength and positions.

    A file is `.jsonl`, `.csv` or `.txt`. Its lines may have `direction` (a folder, or null for
    none), `strength` and `positions`; what a line does not say is what all prompts get.

    Args:
        prompts: One user message or several.
        file: A file of prompts in their place.
        direction: One for all prompts, or one or None for each.
        strength: One for all prompts, or one for each.
        positions: One for all prompts, or one or None for each.

    Returns:
        The prompts in order.

    Raises:
        ConfigError: If there are prompts and a file or neither, or sequences that are not as long
            as the prompts.
        DataError: If the file or a line of it cannot be used.
    """
    if (prompts is None) == (file is None):
        raise ConfigError("give prompts or --file with prompts, one of the two")
    lines = None if file is None else list(prompt_rows(Path(file)))
    asked = (
        [_prompt(line) for line in lines]
        if lines is not None
        else ([prompts] if isinstance(prompts, str) else list(prompts or ()))
    )
    for index, one in enumerate(asked):
        if not isinstance(one, str):
            raise DataError(f"prompt {index} is {one!r}, expected text")
    columns = {
        "direction": _each("direction", direction, (str, Path, Direction, Subspace), len(asked)),
        "strength": _each("strength", strength, (int, float), len(asked)),
        "positions": _each("positions", positions, (str,), len(asked)),
    }
    for one in columns["strength"]:
        require_strength(one)
    rows = tuple(
        AskedPrompt(prompt, **{name: column[i] for name, column in columns.items()})
        for i, prompt in enumerate(asked)
    )
    differ = not (
        isinstance(direction, (str, Path, Direction, Subspace, type(None)))
        and isinstance(strength, (int, float))
        and isinstance(positions, (str, type(None)))
    )
    if lines is None:
        return AskedPrompts(rows, differ)
    differ = differ or any(name in line.values for line in lines for name in OWN_FIELDS)
    return AskedPrompts(tuple(map(_as_line_says, rows, lines)), differ)


def _each(name: str, given: Any, singles: tuple[type, ...], n_prompts: int) -> list[Any]:
    """Returns one value per prompt of what is given for all or for each."""
    if given is None or isinstance(given, singles):
        return [given] * n_prompts
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ConfigError(f"{name} is {given!r}, expected one value or a sequence of them")
    values = list(given)
    if len(values) != n_prompts:
        raise ConfigError(
            f"{len(values)} values of {name} for {n_prompts} prompts: give one per prompt, or one "
            "for all"
        )
    return values


def _prompt(row: PromptRow) -> str:
    prompt = row.values.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{row.place}: 'prompt' is {prompt!r}, expected a text that is not blank")
    unknown = sorted(set(row.values) - {*OWN_FIELDS, *ROW_FIELDS})
    if unknown:
        raise DataError(
            f"{row.place}: unknown field {unknown[0]!r}: a line has prompt and may have "
            f"{', '.join(OWN_FIELDS)}"
        )
    return prompt


def _as_line_says(asked: AskedPrompt, row: PromptRow) -> AskedPrompt:
    own: dict[str, Any] = {name: row.values[name] for name in OWN_FIELDS if name in row.values}
    try:
        for name in own.keys() & {"direction", "positions"}:
            _check_text(name, own[name])
        if own.get("positions") is not None:
            parse_positions(own["positions"])
        if "strength" in own:
            own["strength"] = require_strength(_number("strength", own["strength"]))
    except IsthmusError as error:
        raise DataError(f"{row.place}: {error}") from error
    return replace(asked, **own)


def _check_text(name: str, value: object) -> None:
    if not (value is None or (isinstance(value, str) and value.strip())):
        raise DataError(f"{name!r} is {value!r}, expected a text or null")


def _number(name: str, value: Any) -> float:
    # In a table numbers are text.
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise DataError(f"{name!r} is {value!r}, expected a number: 1 is the direction's own length")
