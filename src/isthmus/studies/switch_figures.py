"""Figures of the switch study: what is restored, against the parameters it takes."""

from collections.abc import Sequence

from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.study_plots import (
    Curve,
    Panel,
    condition_curve,
    curve_panels,
    series_colour,
    series_marker,
)

_FAMILIES = {
    "Sequential maps": "sequential_",
    "Trained, a vector at the trigger": "trained_trigger_",
    "Trained, embeddings alone": "trained_embeddings_",
    "Trained, embeddings and last block": "trained_ends_",
    "Trained, all sites": "trained_all_",
    "Maps fitted apart": "independent_",
    "One site": "one_site_",
    "Difference vectors": "difference",
    "Low-rank weights (LoRA)": "lora_",
    "Blocks' weights": "weights_of_",
    "Direct patch": "direct_patch_",
}
_PANELS = (
    ("triggered", "accuracy", "Right answers back under the bad trigger", 1.05),
    ("triggered", "agreement", "Same answers under the bad trigger", 1.05),
    ("plain", "kl", "KL on plain prompts, nats per token", None),
)


def switch_figures(rows: Sequence[Measurement], n_parameters: int) -> dict[str, str]:
    """Draws answers restored and divergence against the share of the model's parameters.

    Args:
        rows: What the study measured.
        n_parameters: Size of the model.

    Returns:
        SVG text by title, one figure per direction.
    """
    drawn = {}
    rows = [m for m in rows if m.split == "test"]
    for task in dict.fromkeys(m.task.partition("/")[0] for m in rows):
        here = [m for m in rows if m.task.startswith(f"{task}/")]
        sizes = {
            _arm(m): 100 * (m.value or 0) / n_parameters for m in here if m.metric == "n_parameters"
        }
        panels = [
            Panel(
                title,
                "Parameters, % of the model",
                _curves(
                    [m for m in here if (m.task, m.metric) == (f"{task}/{family}", metric)], sizes
                ),
                top,
                is_log=True,
            )
            for family, metric, title, top in _PANELS
        ]
        title = f"What it takes: {task.replace('_', ' ')}"
        svg = curve_panels(panels, f"{task.replace('_', '-')}-parameters", title)
        if svg is not None:
            drawn[title] = svg
    return drawn


def _arm(m: Measurement) -> tuple[str, str | None, int | None]:
    return m.condition, m.map, m.seed


def _curves(
    rows: Sequence[Measurement], sizes: dict[tuple[str, str | None, int | None], float]
) -> tuple[Curve, ...]:
    curves = []
    for index, (label, start) in enumerate(_FAMILIES.items()):
        points = [
            (sizes[_arm(m)], m)
            for m in rows
            if m.condition == "native" and (m.map or "").startswith(start) and sizes[_arm(m)] > 0
        ]
        colour = series_colour(index, len(_FAMILIES))
        ordered = tuple(sorted(points, key=lambda point: point[0]))
        curves.append(Curve(label, colour, ordered, series_marker(index)))
    for condition in ("random", "shuffled_map"):
        points = [(sizes[_arm(m)], m) for m in rows if m.condition == condition]
        curves.append(condition_curve(condition, points))
    return tuple(curve for curve in curves if curve.points)
