"""The figure of a map's validation: what whole-state replacement does, metric by metric."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from isthmus.evaluation.figure_style import INK, STYLES, drawing, svg_text
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.plots import Arm, arm_of, sorted_arms, span_of

_PANELS = (
    ("kl", "KL to the untouched, nats"),
    ("rouge_l", "ROUGE-L to its own text"),
    ("benign_accuracy", "Right answers"),
    ("false_trigger_rate", "False triggers"),
    ("behaviour_rate", "Trigger still works"),
)


def replacement_bars(measurements: Sequence[Measurement], name: str, title: str) -> str | None:
    """Draws what replaced states leave of a model as bars with their intervals.

    Args:
        measurements: One row per arm and metric; other metrics are left out.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.

    Returns:
        SVG text, or None when no such metric was measured.
    """
    panels = [(m, t) for m, t in _PANELS if any(row.metric == m for row in measurements)]
    shown = [row for row in measurements if row.metric in dict(panels)]
    if not panels:
        return None
    arms = sorted_arms(shown)
    with drawing(1.1 + 0.33 * len(arms)) as figure:
        drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (metric, text) in zip(drawn, panels, strict=True):
            rows = {arm_of(row): row for row in shown if row.metric == metric}
            for height, arm in enumerate(arms):
                _draw_bar(axes, height, arm, rows.get(arm))
            axes.set_title(text, fontsize=8.5)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x")
            high = max((span[2] for row in rows.values() if (span := span_of(row))), default=1.0)
            axes.set_xlim(0, 1.35 * max(high, 1.0 if metric != "kl" else 0.05))
        drawn[0].set_yticks(range(len(arms)), [_label(arm) for arm in arms])
        drawn[0].set_ylim(len(arms) - 0.4, -0.6)
        return svg_text(figure, name, title, _in_words(shown, arms))


def _label(arm: Arm) -> str:
    condition, used_map = arm
    if condition == "native":
        return "Self-map"
    if condition == "transferred" and used_map:
        return f"Mapped · {used_map.replace('_', ' ')}"
    return STYLES[condition].label


def _draw_bar(axes: Axes, height: int, arm: Arm, row: Measurement | None) -> None:
    span = span_of(row)
    if span is None:
        text = "–" if row is None else "undefined"
        axes.text(0.02, height, text, va="center", transform=axes.get_yaxis_transform())
        return
    value, low, high = span
    axes.barh(height, value, height=0.62, color=STYLES[arm[0]].light, linewidth=0)
    axes.plot([low, high], [height, height], color=INK, linewidth=1.3)
    text = f"{value:.2f}" if value < 10 else f"{value:.1f}"
    axes.text(1, height, text, transform=axes.get_yaxis_transform(), ha="right", va="center")


def _in_words(rows: Sequence[Measurement], arms: Sequence[Arm]) -> str:
    parts = []
    for arm in arms:
        values = [row for row in rows if arm_of(row) == arm]
        numbers = ", ".join(
            f"{row.metric} undefined" if row.value is None else f"{row.metric} {row.value:.2f}"
            for row in values
        )
        parts.append(f"{_label(arm)}: {numbers}")
    return "; ".join(parts) + "."
