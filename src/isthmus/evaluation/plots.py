"""Figures of the report as SVG text that follows light and dark mode.

1. Each function picks the measurements it can show and returns None when there are none.
2. It draws on a matplotlib `Figure`, never through `pyplot`, so that no state is shared.
3. `figure_style.py` writes it so that ink and series colours are CSS variables.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from isthmus.evaluation.figure_style import INK, STYLES, drawing, svg_text
from isthmus.evaluation.measurements import Measurement

Arm = tuple[str, str | None]


_OUTLINE = "#ff7f2a"
_PAIR_METRICS = (
    ("recovery", "Recovery — behaviour undone"),
    ("swap", "Swap — undone and caused, the worse of both"),
)


def arm_of(measurement: Measurement) -> Arm:
    """Returns what is compared with what: the condition and, where there is one, its map."""
    return measurement.condition, measurement.map


def arm_label(arm: Arm) -> str:
    """Returns an arm's name for people, such as `Transferred · ridge`."""
    condition, used_map = arm
    label = STYLES[condition].label
    return f"{label} · {used_map.replace('_', ' ')}" if used_map else label


def sorted_arms(measurements: Sequence[Measurement]) -> list[Arm]:
    """Returns the arms that occur, conditions in the order of `STYLES`, maps as first met."""
    rank = list(STYLES)
    return sorted(dict.fromkeys(map(arm_of, measurements)), key=lambda arm: rank.index(arm[0]))


def span_of(measurement: Measurement | None) -> tuple[float, float, float] | None:
    """Returns value and both ends, the value thrice without interval, None when undefined."""
    if measurement is None or measurement.value is None:
        return None
    low, high = measurement.ci_low, measurement.ci_high
    value = measurement.value
    return value, value if low is None else low, value if high is None else high


def effect_bars(measurements: Sequence[Measurement], name: str, title: str) -> str | None:
    """Draws recovery and swap of every arm as bars with their intervals, side by side.

    Args:
        measurements: One row per arm and metric; other metrics are left out.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.

    Returns:
        SVG text, or None when neither recovery nor swap was measured.
    """
    shown = [m for m in measurements if m.metric in dict(_PAIR_METRICS)]
    metrics = [(key, text) for key, text in _PAIR_METRICS if any(m.metric == key for m in shown)]
    if not metrics:
        return None
    arms = sorted_arms(shown)
    with drawing(1.1 + 0.33 * len(arms)) as figure:
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, (metric, text) in zip(panels, metrics, strict=True):
            rows = {arm_of(m): m for m in shown if m.metric == metric}
            for height, arm in enumerate(arms):
                draw_bar(axes, height, arm, rows.get(arm))
            finish_bars(axes, text, list(rows.values()))
        panels[0].set_yticks(range(len(arms)), [arm_label(arm) for arm in arms])
        panels[0].set_ylim(len(arms) - 0.4, -0.6)
        return svg_text(figure, name, title, _in_words(shown))


def dose_response(
    measurements: Sequence[Measurement], chosen: Sequence[Measurement], name: str, title: str
) -> str | None:
    """Draws recovery and swap against the strength, a curve with its band for every arm.

    An arm is followed at its chosen sites, edit and positions where these were measured; what still
    shares arm, metric and strength is shown by its best.

    Args:
        measurements: Rows that differ in strength; other metrics are left out.
        chosen: Rows of the settings that were chosen, at most one per arm.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.

    Returns:
        SVG text, or None when fewer than two strengths were measured.
    """
    shown = _doses([m for m in measurements if m.metric in dict(_PAIR_METRICS)], chosen)
    if len({m.strength for m in shown}) < 2:
        return None
    metrics = [(key, text) for key, text in _PAIR_METRICS if any(m.metric == key for m in shown)]
    with drawing(3.5) as figure:
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, (metric, text) in zip(panels, metrics, strict=True):
            arms = sorted_arms(shown)
            for index, arm in enumerate(arms):
                n_alike = sum(other[0] == arm[0] for other in arms[:index])
                _curve(axes, arm, n_alike, [m for m in _of(shown, arm) if m.metric == metric])
            axes.set_title(text)
            axes.set_xlabel("Strength, in norms of the direction")
            axes.grid(axis="y")
            axes.axhline(0, color=INK, linewidth=0.7)
            axes.axhline(1, color=INK, linewidth=0.7, linestyle=(0, (3, 3)))
        low = min(span[1] for span in map(span_of, shown) if span)
        panels[0].set_ylim(max(-0.6, min(-0.05, low - 0.05)), 1.12)
        labelled = {label: h for a in panels for h, label in zip(*_legend(a), strict=True)}
        figure.legend(list(labelled.values()), list(labelled), loc="outside lower left", ncols=4)
        return svg_text(figure, name, title, _in_words(shown))


def layer_heat_map(
    measurements: Sequence[Measurement], chosen: Sequence[Measurement], name: str, title: str
) -> str | None:
    """Draws the effect by target layer: against the strength, or against the arm at one strength.

    Shown is what a sweep ranked cells by, else recovery, else swap. A cell is the best of its
    measurements with the most prompts; the setting of `chosen` is outlined.

    Args:
        measurements: Rows that differ in target site; other metrics are left out.
        chosen: Rows of the settings that were chosen; only site and strength are read.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.

    Returns:
        SVG text, or None when fewer than two target sites were measured.
    """
    given = {m.metric for m in measurements}
    metric = next((one for one in ("sweep_effect", "recovery") if one in given), "swap")
    shown = [
        m for m in measurements if m.metric == metric and m.target_site and m.value is not None
    ]
    sites = sorted({m.target_site for m in shown if m.target_site}, key=_site_order)
    if len(sites) < 2:
        return None
    grids = _grids(shown, chosen)
    with drawing(1.25 + 0.3 * len(sites)) as figure:
        panels = figure.subplots(1, max(len(grids), 2), sharey=True, squeeze=False)[0]
        for axes in panels[len(grids) :]:
            axes.set_axis_off()
        for axes, (text, columns) in zip(panels, grids, strict=False):
            for x, column in enumerate(columns):
                _draw_column(axes, x, sites, column)
            axes.set_title(text.replace(" · ", "\n"))
            axes.set_xticks(range(len(columns)), [column.label for column in columns])
            axes.set_yticks(range(len(sites)), sites)
            axes.set_xlim(-0.5, len(columns) - 0.5)
            axes.set_ylim(-0.5, len(sites) - 0.5)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_xlabel("Strength" if text else "")
        return svg_text(figure, name, title, _in_words(shown))


@dataclass(frozen=True)
class _Column:
    label: str
    rows: list[Measurement]
    outlined: set[str | None]


def _grids(
    shown: Sequence[Measurement], chosen: Sequence[Measurement]
) -> list[tuple[str, list[_Column]]]:
    strengths = sorted({m.strength for m in shown if m.strength is not None})
    arms = [a for a in sorted_arms(shown) if len({m.target_site for m in _of(shown, a)}) > 1]
    ringed = {arm: [m for m in chosen if arm_of(m) == arm] for arm in arms}
    if len(strengths) < 2:
        columns = [
            _Column(arm_label(a), _of(shown, a), {m.target_site for m in ringed[a]}) for a in arms
        ]
        return [("", columns)]
    return [
        (
            arm_label(arm),
            [
                _Column(
                    f"{strength:g}",
                    [m for m in _of(shown, arm) if m.strength == strength],
                    {m.target_site for m in ringed[arm] if m.strength == strength},
                )
                for strength in strengths
            ],
        )
        for arm in arms[:4]
    ]


def _of(measurements: Sequence[Measurement], arm: Arm) -> list[Measurement]:
    return [m for m in measurements if arm_of(m) == arm]


def _site_order(site: str) -> tuple[str, int]:
    stream, _, layer = site.partition("[")
    digits = re.match(r"\d+", layer)
    return stream, int(digits[0]) if digits else 0


def draw_bar(axes: Axes, height: int, arm: Arm, row: Measurement | None) -> None:
    """Draws one arm's value with its interval as a bar, or says that there is none."""
    span = span_of(row)
    if span is None:
        text = "not measured" if row is None else "undefined"
        axes.text(0.02, height, text, va="center", fontstyle="italic")
        return
    value, low, high = span
    axes.barh(height, value, height=0.62, color=STYLES[arm[0]].light, linewidth=0)
    axes.plot([low, high], [height, height], color=INK, linewidth=1.3)
    text, place = f"{value:.2f}".replace("-", "−"), axes.get_yaxis_transform()
    axes.text(1, height, text, transform=place, ha="right", va="center")


def finish_bars(axes: Axes, title: str, rows: Sequence[Measurement]) -> None:
    """Gives axes of bars their title, limits and rules at 0 and 1."""
    axes.set_title(title)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    spans = [span for span in map(span_of, rows) if span]
    low, high = min([0.0, *(s[1] for s in spans)]), max([1.0, *(s[2] for s in spans)])
    axes.set_xlim(max(-1.0, low) - 0.03, min(2.0, high) + 0.17)
    axes.axvline(0, color=INK, linewidth=0.7)
    axes.axvline(1, color=INK, linewidth=0.7, linestyle=(0, (3, 3)))


def _doses(measurements: Sequence[Measurement], chosen: Sequence[Measurement]) -> list[Measurement]:
    kept = [m for m in measurements if m.value is not None and m.strength is not None]
    for setting in chosen:
        for field in ("target_site", "source_site", "edit", "positions"):
            others = [m for m in kept if arm_of(m) != arm_of(setting)]
            mine, wanted = _of(kept, arm_of(setting)), getattr(setting, field)
            same = [m for m in mine if getattr(m, field) == wanted]
            kept = others + same if same else kept
    best: dict[object, Measurement] = {}
    for m in sorted(kept, key=lambda m: (m.n or 0, m.value or 0.0)):
        best[arm_of(m), m.metric, m.strength] = m
    shown = set(best.values())
    return [m for m in measurements if m in shown]


def _legend(axes: Axes) -> tuple[list[Artist], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return list(handles), [str(label) for label in labels]


def _curve(axes: Axes, arm: Arm, n_alike: int, rows: Sequence[Measurement]) -> None:
    by_strength = sorted((m.strength or 0.0, span) for m in rows if (span := span_of(m)))
    if not by_strength:
        return
    x = [strength for strength, _ in by_strength]
    y, low, high = zip(*(span for _, span in by_strength), strict=True)
    style = STYLES[arm[0]]
    is_control = arm[0] not in ("native", "transferred")
    axes.fill_between(x, low, high, color=style.light, alpha=0.14, linewidth=0)
    axes.plot(
        x,
        y,
        marker=style.marker,
        markersize=4.5,
        color=style.light,
        markerfacecolor="none" if n_alike else style.light,
        linewidth=1.2 if is_control else max(1.0, 2.0 - 0.5 * n_alike),
        linestyle=(0, (4, 2)) if is_control else "solid",
        label=arm_label(arm),
    )


def _draw_column(axes: Axes, x: int, sites: Sequence[str], column: _Column) -> None:
    shades = mpl.colormaps["Blues"]
    for y, site in enumerate(sites):
        if not (here := [(m.n or 0, m.value or 0.0) for m in column.rows if m.target_site == site]):
            axes.text(x, y, "–", ha="center", va="center")
            continue
        value = max(here)[1]
        share = min(1.0, max(0.0, value))
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=shades(share), lw=0))
        ink = "#101010" if share < 0.65 else "#ffffff"
        axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8.5)
        if site in column.outlined:
            axes.add_patch(
                Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, ec=_OUTLINE, lw=2.4)
            )


def _in_words(rows: Sequence[Measurement]) -> str:
    parts = []
    for arm in sorted_arms(rows):
        values = _of(rows, arm)[:4]
        numbers = ", ".join(
            f"{m.metric} undefined" if m.value is None else f"{m.metric} {m.value:.2f}"
            for m in values
        )
        parts.append(f"{arm_label(arm)}: {numbers}")
    return "; ".join(parts) + "."
