"""Finds the measurement of ours that stands beside a figure of the paper."""

from collections.abc import Mapping, Sequence

from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.paper import PaperFigure
from isthmus.evaluation.report import group_crossings


def best_match(
    measurements: Sequence[Measurement], wanted: Mapping[str, object]
) -> Measurement | None:
    """Returns the measurement with the wanted fields, if any.

    Of several controls the highest value counts, as the one that came closest to working; of
    several maps, the one that validation chose, unless `wanted` names a map.

    Args:
        measurements: Where to look.
        wanted: Values by the name of the field; a target matches by its ending. `take` is no field:
            `highest`, `lowest` or `first` of several that match, `highest` when not given.

    Returns:
        A measurement whose value is defined.
    """
    fields = {name: value for name, value in wanted.items() if name != "take"}
    found = [
        m
        for m in measurements
        if m.value is not None and all(_agrees(m, name, value) for name, value in fields.items())
    ]
    if "map" not in fields and fields.get("condition") == "transferred":
        found = _of_chosen_map(found, measurements)
    take = wanted.get("take", "highest")
    if take == "first" or not found:
        return found[0] if found else None
    return (min if take == "lowest" else max)(found, key=lambda m: m.value or 0.0)


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
    figure: PaperFigure, measurements: Sequence[Measurement], *, others: bool = False
) -> dict[str, Measurement | None]:
    """Returns what stands beside a figure of the paper.

    Args:
        figure: The paper's figure.
        measurements: Every number of a reproduction.
        others: Whether the models are not the organisms that the figure names: then every target
            that has such a measurement stands there.

    Returns:
        Measurements by title; None where there is none.
    """
    if not others:
        return {title: best_match(measurements, wanted) for title, wanted in figure.ours.items()}
    found: dict[str, Measurement | None] = {}
    for title, wanted in figure.ours.items():
        rest = {name: value for name, value in wanted.items() if name not in {"source", "target"}}
        for target in dict.fromkeys(m.target for m in measurements if m.target):
            match = best_match(measurements, {**rest, "target": target})
            if match is not None:
                found[f"{title}, {target.rsplit('/', 1)[-1]}"] = match
    return found


def _agrees(measurement: Measurement, name: str, value: object) -> bool:
    own = getattr(measurement, name)
    if name in {"source", "target"}:
        return isinstance(own, str) and own.endswith(str(value))
    return bool(own == value)
