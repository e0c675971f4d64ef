import xml.etree.ElementTree as ET
from itertools import pairwise

from tests.unit.evaluation.synthetic_run import measured

from isthmus.evaluation.figure_style import STYLES
from isthmus.evaluation.study_plots import (
    Curve,
    NumberGrid,
    Panel,
    condition_curve,
    curve_panels,
    number_grids,
    series_colour,
    series_marker,
)


def words(svg: str | None) -> list[str]:
    assert svg is not None
    root = ET.fromstring(svg)  # noqa: S314 - our own output
    return [element.text or "" for element in root.iter() if element.tag.endswith("}text")]


def curve(label: str, *values: float | None) -> Curve:
    points = tuple((float(i), measured("swap", value)) for i, value in enumerate(values, start=1))
    return Curve(label, series_colour(0, 2), points)


def test_panels_name_their_curves_once_and_say_their_numbers():
    panels = [Panel("Swap", "Layer", (curve("one", 0.2, 0.75), curve("two", 0.1, 0.3)))] * 2
    svg = curve_panels(panels, "sweep", "By layer")
    seen = words(svg)
    assert seen.count("one") == seen.count("two") == 1
    assert seen.count("Swap") == 2
    assert "By layer" in (svg or "")
    assert "Swap, one: 1 → 0.20, 2 → 0.75" in (svg or "")


def test_panels_without_a_defined_value_are_left_out():
    shown, empty = Panel("Shown", "x", (curve("a", 0.5),)), Panel("Empty", "x", (curve("a", None),))
    seen = words(curve_panels([shown, empty], "f", "t"))
    assert "Shown" in seen
    assert "Empty" not in seen
    assert curve_panels([empty], "f", "t") is None
    assert curve_panels([], "f", "t") is None


def test_a_logarithmic_axis_names_sizes_that_were_measured():
    panel = Panel("Rate", "Noise", (curve("a", 0.1, 0.2, 0.3),), is_log=True)
    assert {"1", "3"} <= set(words(curve_panels([panel], "f", "t")))


def test_the_curve_of_a_condition_has_its_colour_and_runs_along_the_axis():
    made = condition_curve("random", [(2.0, measured("swap", 0.1)), (1.0, measured("swap", 0.2))])
    assert made.colour == STYLES["random"].light
    assert [x for x, _ in made.points] == [1.0, 2.0]
    svg = curve_panels([Panel("p", "x", (made,))], "f", "t")
    assert f"var(--random, {STYLES['random'].light})" in (svg or "")


def test_a_variant_is_told_apart_by_its_name():
    assert condition_curve("native", [], "one pair").label == "Native · one pair"


def test_series_differ_in_colour_and_shape():
    assert all(a != b for a, b in pairwise(series_colour(i, 6) for i in range(6)))
    assert len({series_marker(i) for i in range(8)}) == 8
    assert series_colour(0, 1).startswith("#")


def test_a_grid_says_value_and_interval_in_every_cell_and_a_dash_where_there_is_none():
    cells = {
        ("resid_post[0]", "trigger"): measured("patching_effect", 0.5, ci_low=0.25, ci_high=0.75),
        ("resid_post[0]", "question"): measured("patching_effect", None),
    }
    rows, columns = ("resid_post[0]", "resid_post[1]"), ("trigger", "question")
    svg = number_grids([NumberGrid("Denoising", rows, columns, cells)], "g", "Patching")
    seen = words(svg)
    assert {"0.50", "0.25 – 0.75", *rows, *columns} <= set(seen)
    assert seen.count("–") == 3
    assert "trigger 0.50, question undefined" in (svg or "")
    assert number_grids([NumberGrid("Nothing", rows, columns, {})], "g", "t") is None


def test_what_rounds_to_nothing_has_no_sign():
    cells = {("r", "c"): measured("swap", -0.001, ci_low=-0.2, ci_high=0.0)}
    seen = words(number_grids([NumberGrid("t", ("r",), ("c",), cells)], "g", "t"))
    assert "0.00" in seen
    assert "−0.20 – 0.00" in seen
