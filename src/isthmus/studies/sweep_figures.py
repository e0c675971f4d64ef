"""Figures of the sweeps over layers and strengths."""

from collections.abc import Callable, Sequence

from isthmus.core.sites import Site, parse_site
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.study_plots import Curve, Panel, condition_curve, curve_panels

_METRICS = (
    ("behaviour_rate", "Behaviour still shows"),
    ("answer_accuracy", "Right answers"),
    ("recovery", "Recovery"),
    ("swap", "Swap"),
    ("benign_kl", "Damage, nats per benign token"),
)
_VARIANTS = {"act_add": "one pair × 5", "add": "mean difference"}
_MOST_LAYERS = 100_000


def layer_figures(
    rows: Sequence[Measurement], model: str, positions: Sequence[str]
) -> dict[str, str]:
    """Draws every metric against the layer, one figure per kind of positions.

    Args:
        rows: What the sweep measured.
        model: Name for people.
        positions: Kinds of positions.

    Returns:
        SVG text by title.
    """
    figures = {}
    for where in positions:
        here = [m for m in rows if m.positions == where]
        title = f"Steering by layer, positions {where}, {model}"
        panels = [
            Panel(text, "Layer", _by_layer(here, metric), _top(metric)) for metric, text in _METRICS
        ]
        drawn = curve_panels(panels, f"layers-{where.replace(':', '-')}", title)
        if drawn is not None:
            figures[title] = drawn
    return figures


def strength_figures(rows: Sequence[Measurement], source: str, target: str) -> dict[str, str]:
    """Draws every metric against the strength.

    Args:
        rows: What the sweep measured.
        source: Name of the model the direction was learned in.
        target: Name of the model that was steered.

    Returns:
        SVG text by title.
    """
    title = f"Steering by strength, {source} to {target}"
    panels = [
        Panel(text, "Strength", _by_strength(rows, metric), _top(metric), is_log=True)
        for metric, text in _METRICS
    ]
    drawn = curve_panels(panels, "strengths", title)
    return {} if drawn is None else {title: drawn}


def _top(metric: str) -> float | None:
    return None if metric == "benign_kl" else 1.05


def _by_layer(rows: Sequence[Measurement], metric: str) -> tuple[Curve, ...]:
    curves = []
    for condition in ("native", "random"):
        for edit, words in _VARIANTS.items():
            shown = _first_draw(
                [m for m in rows if (m.metric, m.condition, m.edit) == (metric, condition, edit)]
            )
            dashed = edit == "act_add"
            curves.append(
                condition_curve(condition, _points(shown, _layer), words, is_dashed=dashed)
            )
    return tuple(curve for curve in curves if curve.points)


def _by_strength(rows: Sequence[Measurement], metric: str) -> tuple[Curve, ...]:
    curves = []
    for condition in ("native", "transferred", "random"):
        shown = _first_draw([m for m in rows if (m.metric, m.condition) == (metric, condition)])
        words = "ridge" if condition == "transferred" else ""
        dashed = condition == "random"
        curves.append(
            condition_curve(condition, _points(shown, _strength), words, is_dashed=dashed)
        )
    return tuple(curve for curve in curves if curve.points)


def _first_draw(rows: Sequence[Measurement]) -> list[Measurement]:
    """Keeps one draw of a random condition: bands of several on one place cannot be told apart."""
    first = min((m.seed or 0 for m in rows), default=0)
    return [m for m in rows if (m.seed or 0) == first]


def _points(
    rows: Sequence[Measurement], where: Callable[[Measurement], float]
) -> list[tuple[float, Measurement]]:
    return [(where(m), m) for m in rows]


def _layer(row: Measurement) -> float:
    site: Site = parse_site(row.target_site or "", _MOST_LAYERS)
    return float(site.layer)


def _strength(row: Measurement) -> float:
    return row.strength or 0.0
