"""The figure of transfer rates: how much of a behaviour every arm leaves in every target.

1. A panel is one crossing: rates of another source in the same target stand in another panel.
2. Completions are read of the chosen map and few controls; arms of which only the swap was measured
   say so in place of a bar.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from isthmus.evaluation.figure_style import drawing, svg_text
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.plots import Arm, arm_label, arm_of, draw_bar, finish_bars, sorted_arms
from isthmus.evaluation.report import short_name

_N_COLUMNS = 3


def transfer_rates(measurements: Sequence[Measurement], name: str, title: str) -> str | None:
    """Draws the behaviour rate on triggered prompts of the test split, a panel for every crossing.

    It answers Figures 3 and 8 of arXiv 2503.04429: no steering, native, mapped by every map, and
    the controls. An arm without a rate shows its swap in words.

    Args:
        measurements: Rows of crossings; other metrics and splits are left out.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.

    Returns:
        SVG text, or None when no behaviour rate was measured.
    """
    tested = [m for m in measurements if m.split == "test"]
    rates = [m for m in tested if m.metric == "behaviour_rate"]
    swaps = [m for m in tested if m.metric == "swap"]
    pairs = list(dict.fromkeys((m.source, m.target) for m in rates))
    if not pairs:
        return None
    arms = sorted_arms([*rates, *swaps])
    n_columns = min(_N_COLUMNS, len(pairs))
    n_rows = -(-len(pairs) // n_columns)
    with drawing(n_rows * (1.1 + 0.33 * len(arms))) as figure:
        panels = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).flatten()
        for axes in panels[len(pairs) :]:
            axes.set_axis_off()
        for axes, pair in zip(panels, pairs, strict=False):
            mine, moved = _of_pair(rates, pair), _of_pair(swaps, pair)
            for height, arm in enumerate(arms):
                _draw(axes, height, arm, mine, moved)
            finish_bars(axes, _pair_title(pair, pairs), list(mine.values()))
        panels[0].set_yticks(range(len(arms)), [arm_label(arm) for arm in arms])
        panels[0].set_ylim(len(arms) - 0.4, -0.6)
        return svg_text(figure, name, title, _in_words(rates, pairs))


Pair = tuple[str | None, str | None]


def _of_pair(rows: Sequence[Measurement], pair: Pair) -> dict[Arm, Measurement]:
    """Returns one row of every arm, of several draws the one with the highest swap."""
    found: dict[Arm, Measurement] = {}
    for m in rows:
        if (m.source, m.target) != pair:
            continue
        kept = found.setdefault(arm_of(m), m)
        if m.metric == "swap" and (m.value or 0.0) > (kept.value or 0.0):
            found[arm_of(m)] = m
    return found


def _draw(
    axes: Axes,
    height: int,
    arm: Arm,
    rates: dict[Arm, Measurement],
    swaps: dict[Arm, Measurement],
) -> None:
    swap = swaps.get(arm)
    if arm in rates or swap is None or swap.value is None:
        draw_bar(axes, height, arm, rates.get(arm))
        return
    text = f"no rate; swap {swap.value:.2f}".replace("-", "−")
    axes.text(0.02, height, text, va="center", fontstyle="italic")


def _pair_title(pair: Pair, pairs: Sequence[Pair]) -> str:
    source, target = map(short_name, pair)
    return target if len({one for one, _ in pairs}) == 1 else f"{source} →\n{target}"


def _in_words(rows: Sequence[Measurement], pairs: Sequence[Pair]) -> str:
    parts = [
        f"{_pair_title((m.source, m.target), pairs)}, {arm_label(arm_of(m))}: {m.value:.2f}"
        for m in rows
        if m.value is not None
    ]
    return "; ".join(parts).replace("\n", " ") + "."
