import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.evaluation.synthetic_run import measured

from isthmus.evaluation.figure_style import STYLES, ConditionStyle
from isthmus.evaluation.measurements import CONDITIONS, Measurement
from isthmus.evaluation.plots import (
    arm_label,
    dose_response,
    effect_bars,
    layer_heat_map,
    sorted_arms,
    span_of,
)


def sweep(
    condition: str, values: dict[tuple[int, float], float], metric: str = "recovery"
) -> list[Measurement]:
    """One arm measured at (layer, strength)."""
    return [
        measured(
            metric,
            value,
            condition=condition,
            target_site=f"resid_post[{layer}]",
            strength=strength,
            split="validation",
        )
        for (layer, strength), value in values.items()
    ]


def words(svg: str | None) -> list[str]:
    """What a reader sees as text in a figure."""
    assert svg is not None
    root = ET.fromstring(svg)  # noqa: S314 - our own output
    return [element.text or "" for element in root.iter() if element.tag.endswith("}text")]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1) of a hexadecimal colour."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


BARS = [
    measured("recovery", 0.96, map="ridge"),
    measured("swap", 0.9, map="ridge"),
    measured("recovery", 0.41, condition="random"),
    measured("swap", None, condition="random"),
    measured("recovery", 0.52, condition="noise"),
]
GRID = {
    (layer, strength): 0.2 * layer + 0.1 * strength for layer in range(3) for strength in (1.0, 2.0)
}


def test_every_condition_has_a_style_of_its_own() -> None:
    assert set(STYLES) == set(CONDITIONS)
    for one, other in combinations(STYLES.values(), 2):
        assert one.light != other.light
        assert one.label != other.label


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.label)
def test_colours_stand_out_from_light_and_dark_paper(style: ConditionStyle) -> None:
    # WCAG asks 3 : 1 of graphical objects.
    for colour, paper in ((style.light, "#fdfdfb"), (style.dark, "#15171a")):
        low, high = sorted((luminance(colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3.0


def test_bars_tell_values_undefined_and_not_measured_apart() -> None:
    shown = words(effect_bars(BARS, "bars", "Effects"))
    assert {"0.96", "0.90", "0.41", "0.52"} <= set(shown)
    assert shown.count("undefined") == 1
    assert shown.count("not measured") == 1
    assert {"Transferred · ridge", "Random direction", "Noise"} <= set(shown)


def test_longer_bars_mean_larger_values() -> None:
    svg = effect_bars([BARS[2], replace(BARS[4], value=0.82)], "bars", "Effects") or ""
    widths = []
    for condition in ("random", "noise"):
        drawn = re.search(rf'd="([^"]+)"[^>]*style="fill: var\(--{condition},', svg)
        assert drawn
        places = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", drawn[1])]
        widths.append(max(places) - min(places))
    assert widths[1] / widths[0] == pytest.approx(2.0, rel=1e-3)


def test_figures_follow_the_page_and_carry_no_fixed_ink() -> None:
    svg = effect_bars(BARS, "bars", "Effects") or ""
    assert "currentColor" in svg
    assert "var(--transferred, #d55e00)" in svg
    assert not re.search(r"(fill|stroke): ?#(000000|ffffff)", svg)


def test_figures_name_themselves_and_say_their_numbers() -> None:
    svg = effect_bars(BARS, "bars", "Effects of <everything>") or ""
    title, description = list(ET.fromstring(svg))[:2]  # noqa: S314 - our own output
    assert title.text == "Effects of <everything>"
    assert "Transferred · ridge: recovery 0.96, swap 0.90" in (description.text or "")
    assert "swap undefined" in (description.text or "")


def test_identifiers_of_two_figures_on_one_page_do_not_meet() -> None:
    chosen = sweep("native", {(1, 1.0): 0.3})
    first, second = (
        set(
            re.findall(
                r'id="([^"]+)"', dose_response(sweep("native", GRID), chosen, name, "") or ""
            )
        )
        for name in ("one", "two")
    )
    assert first
    assert not first & second


def test_drawing_twice_gives_the_same_text_and_changes_no_global_setting() -> None:
    before = dict(mpl.rcParams)
    assert effect_bars(BARS, "bars", "Effects") == effect_bars(BARS, "bars", "Effects")
    assert dict(mpl.rcParams) == before


def test_nothing_to_draw_is_none_rather_than_an_empty_figure() -> None:
    one_point = sweep("native", {(1, 1.0): 0.5})
    assert effect_bars([measured("benign_kl", 0.1)], "bars", "") is None
    assert dose_response(one_point, [], "dose", "") is None
    assert layer_heat_map(one_point, [], "layers", "") is None
    undefined = [replace(m, value=None, ci_low=None, ci_high=None) for m in sweep("native", GRID)]
    assert dose_response(undefined, [], "dose", "") is None
    assert layer_heat_map(undefined, [], "layers", "") is None


def test_a_dose_curve_follows_the_chosen_layer_and_else_the_best() -> None:
    rows = sweep("native", {(0, 1.0): 0.91, (0, 2.0): 0.92, (1, 1.0): 0.11, (1, 2.0): 0.12})
    followed = dose_response(rows, rows[2:3], "dose", "") or ""
    best = dose_response(rows, [], "dose", "") or ""
    assert "recovery 0.11, recovery 0.12." in followed
    assert "recovery 0.91, recovery 0.92." in best


def test_a_dose_response_names_every_arm_once() -> None:
    rows = sweep("native", GRID) + sweep("noise", GRID) + sweep("native", GRID, "swap")
    shown = words(dose_response(rows, [], "dose", ""))
    assert shown.count("Native") == shown.count("Noise") == 1


def test_a_heat_map_writes_the_best_of_every_cell_and_frames_the_chosen_one() -> None:
    rows = sweep("native", GRID) + sweep("native", {(2, 2.0): 0.99})
    without = layer_heat_map(rows, [], "layers", "") or ""
    framed = layer_heat_map(rows, rows[-1:], "layers", "") or ""
    assert "0.99" in words(framed)
    assert "0.60" not in words(framed)
    assert framed.count("#ff7f2a") == 1
    assert "#ff7f2a" not in without


def test_a_heat_map_puts_arms_side_by_side_when_there_is_one_strength() -> None:
    values = {(layer, 1.0): 0.1 * layer for layer in range(12)}
    shown = words(layer_heat_map(sweep("native", values) + sweep("random", values), [], "l", ""))
    assert {"Native", "Random direction", "resid_post[11]"} <= set(shown)
    sites = [text for text in shown if text.startswith("resid_post")]
    assert sites == [f"resid_post[{layer}]" for layer in range(12)]


def test_a_cell_that_was_not_measured_is_a_dash() -> None:
    values = {cell: value for cell, value in GRID.items() if cell != (1, 2.0)}
    assert words(layer_heat_map(sweep("native", values), [], "layers", "")).count("–") == 1


def test_arms_come_in_the_order_of_conditions_whatever_the_order_of_rows() -> None:
    expected = [("transferred", "ridge"), ("random", None), ("noise", None)]
    assert sorted_arms(BARS) == sorted_arms(BARS[::-1]) == expected
    assert arm_label(("shuffled_map", "ridge_all_layers")) == "Shuffled pairs · ridge all layers"


def test_a_span_is_value_and_ends() -> None:
    bare = replace(measured("swap", 0.5), ci_low=None, ci_high=None)
    assert span_of(bare) == (0.5, 0.5, 0.5)
    assert span_of(measured("swap", 0.5)) == pytest.approx((0.5, 0.47, 0.53))
    assert span_of(measured("swap", None)) is None
    assert span_of(None) is None


@settings(deadline=None, max_examples=10)
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
    st.floats(-1e3, 1e3),
)
def test_any_name_and_any_number_give_well_formed_svg(name: str, value: float) -> None:
    row = replace(measured("recovery", 0.5), map=name, value=value, ci_low=value, ci_high=value)
    svg = effect_bars([row], "bars", name) or ""
    root = ET.fromstring(svg)  # noqa: S314 - our own output
    assert root.tag.endswith("}svg")
    assert next(iter(root)).text == name
