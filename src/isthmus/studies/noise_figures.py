"""Figures of the noise study: rates against the size of the noise, a curve per site."""

from collections.abc import Sequence

from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.study_plots import (
    Curve,
    Panel,
    curve_panels,
    series_colour,
    series_marker,
)

_REMOVAL = (
    ("behaviour_rate", "Behaviour still shows"),
    ("answer_accuracy", "Right answers"),
    ("recovery", "Recovery"),
    ("swap", "Swap"),
    ("perplexity", "Perplexity under the base model"),
)
_INDUCTION = (("false_trigger_rate", "Behaviour shows"), ("benign_accuracy", "Right answers"))
_PROMPTS = {"clean": "clean trigger", "untriggered": "no trigger"}
_X = "Noise, in units of the site"


def noise_figures(rows: Sequence[Measurement], model: str) -> dict[str, str]:
    """Draws what noise removes and what it sets off.

    Args:
        rows: What the study measured.
        model: Name for people.

    Returns:
        SVG text by title.
    """
    noisy = [m for m in rows if m.condition == "noise"]
    removal = [
        _panel(text, [m for m in noisy if m.metric == metric], is_rate=metric != "perplexity")
        for metric, text in _REMOVAL
    ]
    kinds = dict.fromkeys((m.task, m.positions) for m in noisy if m.positions != "trigger")
    induction = [
        _panel(
            f"{text}: {_PROMPTS[task.rpartition('/')[2]]}, {positions}",
            [m for m in noisy if (m.task, m.positions, m.metric) == (task, positions, metric)],
        )
        for metric, text in _INDUCTION
        for task, positions in kinds
    ]
    titles = {
        f"Noise at the trigger's tokens, {model}": (removal, "noise-removal", 3),
        f"Noise where no bad trigger is, {model}": (induction, "noise-induction", 2),
    }
    drawn = {
        title: curve_panels(panels, name, title, n_columns)
        for title, (panels, name, n_columns) in titles.items()
    }
    return {title: svg for title, svg in drawn.items() if svg is not None}


def _panel(title: str, rows: Sequence[Measurement], *, is_rate: bool = True) -> Panel:
    sites = list(dict.fromkeys(m.target_site or "" for m in rows))
    curves = tuple(
        Curve(
            site,
            series_colour(index, len(sites)),
            tuple((m.strength or 0.0, m) for m in rows if m.target_site == site),
            series_marker(index),
        )
        for index, site in enumerate(sites)
    )
    top = 1.05 if is_rate else None
    return Panel(title, _X, curves, top, is_log=True, has_log_values=not is_rate)
