"""Figures of studies: curves with their bands side by side, and grids of numbers.

1. A study says what it shows as `Panel`s of `Curve`s, or as `NumberGrid`s; nothing is chosen here.
2. Both are drawn in the manner of the report's figures and written as SVG text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from isthmus.evaluation.figure_style import INK, STYLES, drawing, svg_text
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.plots import span_of

_MARKERS = "oDsv^PXp"
_MOST_TICKS = 8


@dataclass(frozen=True)
class Curve:
    """Measurements in a row, with what they are plotted against.

    Attributes:
        label: Name for people; curves of one name share an entry of the legend.
        colour: A hexadecimal colour; that of a condition follows light and dark mode.
        points: Where on the horizontal axis, and what was measured.
        marker: Shape of its points.
        is_dashed: Whether its line is broken, as that of a control or of a variant.
    """

    label: str
    colour: str
    points: tuple[tuple[float, Measurement], ...]
    marker: str = "o"
    is_dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: What is measured.
        x_label: What it is plotted against.
        curves: What is drawn; undefined values are left out.
        top: Upper end of the vertical axis; 1.05 fits rates, None what there is.
        is_log: Whether the horizontal axis is logarithmic.
        has_log_values: Whether the vertical one is.
    """

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    top: float | None = 1.05
    is_log: bool = False
    has_log_values: bool = False


@dataclass(frozen=True)
class NumberGrid:
    """Numbers by row and column, such as an effect by layer and position.

    Attributes:
        title: What is measured.
        rows: Names from bottom to top.
        columns: Names from left to right.
        cells: Measurements by row and column; an absent or undefined one is a dash.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Measurement]


def condition_curve(
    condition: str,
    points: Sequence[tuple[float, Measurement]],
    variant: str = "",
    *,
    is_dashed: bool = False,
) -> Curve:
    """Returns a curve in the colour and shape that its condition has in every figure.

    Args:
        condition: As in `results.jsonl`.
        points: Where on the horizontal axis, and what was measured.
        variant: What tells it from others of its condition, for the legend.
        is_dashed: Whether its line is broken.

    Returns:
        The curve, its points in the order of the horizontal axis.
    """
    style = STYLES[condition]
    label = f"{style.label} · {variant}" if variant else style.label
    in_order = tuple(sorted(points, key=lambda point: point[0]))
    return Curve(label, style.light, in_order, style.marker, is_dashed)


def series_colour(index: int, n: int) -> str:
    """Returns one of n colours in a row, readable on light and on dark pages.

    Args:
        index: Which one, from 0.
        n: How many there are.

    Returns:
        A hexadecimal colour, from violet to orange.
    """
    return to_hex(mpl.colormaps["plasma"](0.25 + 0.5 * index / max(1, n - 1)))


def series_marker(index: int) -> str:
    """Returns the shape of the points of one of several series.

    Args:
        index: Which one, from 0; shapes repeat after eight.

    Returns:
        A matplotlib marker.
    """
    return _MARKERS[index % len(_MARKERS)]


def curve_panels(panels: Sequence[Panel], name: str, title: str, n_columns: int = 3) -> str | None:
    """Draws panels of curves with the intervals as bands, row by row.

    Args:
        panels: What to draw; panels without a defined value are left out.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.
        n_columns: Most panels side by side.

    Returns:
        SVG text, or None when nothing is defined.
    """
    shown = [panel for panel in panels if any(_spans(curve) for curve in panel.curves)]
    if not shown:
        return None
    width = min(n_columns, len(shown))
    n_rows = -(-len(shown) // width)
    with drawing(0.6 + 2.5 * n_rows) as figure:
        every = figure.subplots(n_rows, width, squeeze=False).flatten()
        for axes in every[len(shown) :]:
            axes.set_axis_off()
        for axes, panel in zip(every, shown, strict=False):
            _draw_panel(axes, panel)
        labelled = {
            str(label): handle
            for axes in every
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            list(labelled.values()), list(labelled), loc="outside lower left", ncols=min(4, width)
        )
        return svg_text(figure, name, title, _panels_in_words(shown))


def number_grids(grids: Sequence[NumberGrid], name: str, title: str) -> str | None:
    """Draws grids of numbers as heat maps, one below the other; a cell says value and interval.

    Args:
        grids: What to draw.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.

    Returns:
        SVG text, or None when there is no cell.
    """
    shown = [grid for grid in grids if grid.cells]
    if not shown:
        return None
    heights = [0.8 + 0.42 * len(grid.rows) for grid in shown]
    with drawing(sum(heights)) as figure:
        every = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).flatten()
        for axes, grid in zip(every, shown, strict=True):
            _draw_grid(axes, grid)
        return svg_text(figure, name, title, _grids_in_words(shown))


def _spans(curve: Curve) -> list[tuple[float, float, float, float]]:
    return [(x, *span) for x, m in curve.points if (span := span_of(m))]


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        if not (spans := _spans(curve)):
            continue
        x, y, low, high = zip(*spans, strict=True)
        axes.fill_between(x, low, high, color=curve.colour, alpha=0.14, linewidth=0)
        axes.plot(
            x,
            y,
            marker=curve.marker,
            markersize=4.5,
            color=curve.colour,
            markerfacecolor="none" if curve.is_dashed else curve.colour,
            linewidth=1.2 if curve.is_dashed else 1.8,
            linestyle=(0, (4, 2)) if curve.is_dashed else "solid",
            label=curve.label,
        )
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.grid(axis="y")
    if panel.has_log_values:
        axes.set_yscale("log")
    else:
        axes.axhline(0, color=INK, linewidth=0.7)
    if panel.top is not None:
        least = min((span[2] for curve in panel.curves for span in _spans(curve)), default=0.0)
        axes.set_ylim(max(-0.6, min(-0.05, least - 0.05)), panel.top)
    if panel.is_log:
        axes.set_xscale("log")
        ticks = sorted({x for curve in panel.curves for x, *_ in _spans(curve)})[::2]
        if len(ticks) > _MOST_TICKS:
            # Their names would overlap.
            powers = range(math.floor(math.log10(ticks[0])), math.ceil(math.log10(ticks[-1])) + 1)
            ticks = [10.0**power for power in powers]
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    elif all(float(x).is_integer() for curve in panel.curves for x, _ in curve.points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_grid(axes: Axes, grid: NumberGrid) -> None:
    shades = mpl.colormaps["Blues"]
    for y, row in enumerate(grid.rows):
        for x, column in enumerate(grid.columns):
            span = span_of(grid.cells.get((row, column)))
            if span is None:
                axes.text(x, y, "–", ha="center", va="center")
                continue
            value, low, high = span
            share = min(1.0, max(0.0, value))
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=shades(share), lw=0))
            ink = "#101010" if share < 0.65 else "#ffffff"
            axes.text(x, y + 0.16, _number(value), ha="center", va="center", color=ink, fontsize=9)
            ends = f"{_number(low)} – {_number(high)}"
            axes.text(x, y - 0.24, ends, ha="center", va="center", color=ink, fontsize=6)
    axes.set_title(grid.title)
    axes.set_xticks(range(len(grid.columns)), grid.columns)
    axes.set_yticks(range(len(grid.rows)), grid.rows)
    axes.set_xlim(-0.5, len(grid.columns) - 0.5)
    axes.set_ylim(-0.5, len(grid.rows) - 0.5)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _number(value: float) -> str:
    # What rounds to nothing has no sign.
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _panels_in_words(panels: Sequence[Panel]) -> str:
    return "; ".join(
        f"{panel.title}, {curve.label}: "
        + ", ".join(f"{x:g} → {_number(value)}" for x, value, *_ in _spans(curve))
        for panel in panels
        for curve in panel.curves
    )


def _grids_in_words(grids: Sequence[NumberGrid]) -> str:
    return "; ".join(
        f"{grid.title}, {row}: "
        + ", ".join(
            f"{column} {'undefined' if (span := span_of(one)) is None else _number(span[0])}"
            for column in grid.columns
            if (one := grid.cells.get((row, column))) is not None
        )
        for grid in grids
        for row in grid.rows
    )
