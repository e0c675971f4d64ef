"""The figure of transfer rates: how much of a behaviour every arm leaves in every target."""

from collections.abc import Sequence

from isthmus.evaluation.figure_style import drawing, svg_text
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.plots import arm_label, arm_of, draw_bar, finish_bars, sorted_arms
from isthmus.evaluation.report import short_name


def transfer_rates(measurements: Sequence[Measurement], name: str, title: str) -> str | None:
    """Draws the behaviour rate on triggered prompts of the test split, a panel for every target.

    It answers Figures 3 and 8 of arXiv 2503.04429: no steering, native, mapped by every map, and
    the controls.

    Args:
        measurements: Rows of crossings; other metrics and splits are left out.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.

    Returns:
        SVG text, or None when no behaviour rate was measured.
    """
    shown = [m for m in measurements if m.metric == "behaviour_rate" and m.split == "test"]
    targets = list(dict.fromkeys(m.target for m in shown))
    if not targets:
        return None
    arms = sorted_arms(shown)
    with drawing(1.1 + 0.33 * len(arms)) as figure:
        panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
        for axes, target in zip(panels, targets, strict=True):
            rows = {arm_of(m): m for m in shown if m.target == target}
            for height, arm in enumerate(arms):
                draw_bar(axes, height, arm, rows.get(arm))
            finish_bars(axes, short_name(target), list(rows.values()))
        panels[0].set_yticks(range(len(arms)), [arm_label(arm) for arm in arms])
        panels[0].set_ylim(len(arms) - 0.4, -0.6)
        return svg_text(figure, name, title, _in_words(shown))


def _in_words(rows: Sequence[Measurement]) -> str:
    parts = [
        f"{short_name(m.target)}, {arm_label(arm_of(m))}: {m.value:.2f}"
        for m in rows
        if m.value is not None
    ]
    return "; ".join(parts) + "."
