"""Finds the measurements of ours that stand beside a figure of the paper.

1. A row of the table stands for pairs of models: the one that it names of the organisms, or of
   other models every pair of its kind. Numbers of one pair never stand for another.
2. Of each pair every number that the row wants is looked for.
3. A number's title says what was found: which control, which map, which scale.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from isthmus.evaluation.figure_style import STYLES
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.paper_rows import PairKind, PaperFigure, Wanted
from isthmus.evaluation.report import group_crossings, short_name

_NO_FIELDS = ("take", "like", "each")

PairKinds = Mapping[tuple[str, str], PairKind]
"""What kind every pair of source and target is of."""


@dataclass(frozen=True)
class FoundPair:
    """What one pair of models has beside a figure of the paper.

    Attributes:
        name: Source and target, or the model where it is one.
        numbers: Measurements by title, some of them undefined; None where there is none.
    """

    name: str
    numbers: Mapping[str, Measurement | None]


def best_match(measurements: Sequence[Measurement], wanted: Wanted) -> Measurement | None:
    """Returns the measurement with the wanted fields, if any.

    Of several controls the highest value counts, as the one that came closest to working; of
    several maps, the one that validation chose, unless `wanted` names a map.

    Args:
        measurements: Where to look.
        wanted: Values by the name of the field. A tuple holds alternatives; a text that ends in `*`
            matches what begins so. Three keys are no fields: `take` is `highest`, `lowest` or
            `first` of several that match, `highest` when not given; `like` holds further fields of
            the measurement whose map and strength are wanted; `each` is read by `found_for`.

    Returns:
        A measurement whose value is defined.
    """
    fields = {name: value for name, value in wanted.items() if name not in _NO_FIELDS}
    found = _all_matches(measurements, fields)
    if isinstance(like := wanted.get("like"), Mapping):
        place: Wanted = {n: fields[n] for n in ("task", "metric", "split") if n in fields}
        alike = _all_matches(measurements, {**place, **like})
        settings = {(m.map, m.strength) for m in alike}
        found = [m for m in found if (m.map, m.strength) in settings]
    if "map" not in fields and fields.get("condition") == "transferred":
        found = _of_chosen_map(found, measurements)
    take = wanted.get("take", "highest")
    if take == "first" or not found:
        return found[0] if found else None
    return (min if take == "lowest" else max)(found, key=lambda m: m.value or 0.0)


def _all_matches(measurements: Sequence[Measurement], fields: Wanted) -> list[Measurement]:
    return [
        m
        for m in measurements
        if m.value is not None and all(_agrees(m, name, value) for name, value in fields.items())
    ]


def _of_chosen_map(
    found: Sequence[Measurement], measurements: Sequence[Measurement]
) -> list[Measurement]:
    if len({m.map for m in found}) < 2:
        return list(found)
    one = found[0]
    alike = [
        m
        for m in measurements
        if (m.task, m.target, m.edit) == (one.task, one.target, one.edit) and m.source == one.source
    ]
    rows = [crossing.transferred for crossing in group_crossings(alike)]
    chosen = {row.arm[1] for row in rows if row is not None}
    return [m for m in found if m.map in chosen]


def found_for(
    figure: PaperFigure, measurements: Sequence[Measurement], kinds: PairKinds | None = None
) -> list[FoundPair]:
    """Returns what stands beside a figure of the paper.

    Args:
        figure: The paper's figure.
        measurements: Every number of a reproduction.
        kinds: Every pair of models and its kind, where they are not the organisms: then each pair
            of a kind that the figure asks for stands there by itself.

    Returns:
        Pairs of which at least one number was measured.
    """
    if kinds is None:
        named = [
            (m.source, m.target)
            for m in measurements
            if (short_name(m.source), short_name(m.target)) == figure.organisms
        ]
        pairs: Iterable[tuple[str | None, str | None]] = named[:1]
    elif figure.kinds:
        pairs = [pair for pair, kind in kinds.items() if kind in figure.kinds]
    else:
        pairs = dict.fromkeys((name, name) for pair in kinds for name in pair)
    found = []
    for source, target in pairs:
        mine = [m for m in measurements if m.target == target and m.source in (source, None)]
        numbers = _numbers(figure, mine)
        if any(numbers.values()):
            ends = dict.fromkeys(short_name(one) for one in (source, target))
            found.append(FoundPair(" → ".join(ends), numbers))
    return found


def _numbers(figure: PaperFigure, mine: Sequence[Measurement]) -> dict[str, Measurement | None]:
    numbers: dict[str, Measurement | None] = {}
    for title, wanted in figure.ours.items():
        for one in _one_by_one(wanted, mine):
            match = best_match(mine, one)
            numbers[_titled(title, match, mine)] = match or _undefined(mine, one)
    return numbers


def _undefined(mine: Sequence[Measurement], wanted: Wanted) -> Measurement | None:
    """Returns a number that was measured but is not defined, as of a model without the fault."""
    fields = {name: value for name, value in wanted.items() if name not in _NO_FIELDS}
    alike = (m for m in mine if all(_agrees(m, name, value) for name, value in fields.items()))
    return next((m for m in alike if m.value is None), None)


def _one_by_one(wanted: Wanted, mine: Sequence[Measurement]) -> list[Wanted]:
    name = wanted.get("each")
    if not isinstance(name, str):
        return [wanted]
    fields = {key: value for key, value in wanted.items() if key not in _NO_FIELDS}
    values = dict.fromkeys(getattr(m, name) for m in _all_matches(mine, fields))
    return [{**wanted, name: value} for value in values]


def _titled(title: str, match: Measurement | None, mine: Sequence[Measurement]) -> str:
    """Fills in what was found; where nothing was, what would name it is left out."""
    if match is None:
        return re.sub(r" \([^()]*\{[^()]*\)|, [\w ]+ \{\w+\}", "", title)
    size = [m.value or 0 for m in mine if m.metric == "n_parameters" and _same_arm(m, match)]
    return title.format(
        condition=STYLES[match.condition].label.lower(),
        map=(match.map or "no map").replace("_", " "),
        strength=f"{match.strength or 0:g}",
        site=match.target_site,
        parameters=f"{size[0]:,.0f}" if size else "some",
    )


def _same_arm(one: Measurement, other: Measurement) -> bool:
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("task", "condition", "map", "split", "seed")
    )


def _agrees(measurement: Measurement, name: str, value: object) -> bool:
    own = getattr(measurement, name)
    if isinstance(value, tuple):
        return own in value
    if isinstance(value, str) and value.endswith("*"):
        return isinstance(own, str) and own.startswith(value[:-1])
    return bool(own == value)
