"""How every figure looks: condition styles, matplotlib settings, SVG text that follows the page."""

import html
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure


@dataclass(frozen=True)
class ConditionStyle:
    """How a condition is named and drawn, the same in every figure.

    Attributes:
        label: Name for people.
        light: Colour on a light page, from a palette that colour-blind readers can tell apart.
        dark: Colour on a dark page.
        marker: Shape of its points, for readers without colour.
    """

    label: str
    light: str
    dark: str
    marker: str


STYLES: Mapping[str, ConditionStyle] = {
    "none": ConditionStyle("No edit", "#8b8f94", "#8f959c", "."),
    "clean": ConditionStyle("Clean prompt", "#565a5f", "#b9bec4", "."),
    "native": ConditionStyle("Native", "#0072b2", "#57aee6", "o"),
    "transferred": ConditionStyle("Transferred", "#d55e00", "#f58b3c", "D"),
    "prompt_only": ConditionStyle("Prompt only", "#4b4f9e", "#9a9ee8", "P"),
    "random": ConditionStyle("Random direction", "#9c6a86", "#cf98b8", "s"),
    "shuffled_map": ConditionStyle("Shuffled pairs", "#b08900", "#e0b93a", "^"),
    "identity_map": ConditionStyle("Identity map", "#00876c", "#3fc4a4", "v"),
    "noise": ConditionStyle("Noise", "#5b9bb5", "#8cc6dc", "X"),
    "mean_ablation": ConditionStyle("Mean ablation", "#7d6b57", "#b8a48c", "p"),
}
"""Every condition in the order in which it is shown; `results.jsonl` names them so."""

INK, RULE = "#1b1f23", "#d8d8d4"
"""Text and lines, and the grid; the page's own ink and rule stand in for them."""
_DARK_INK, _DARK_RULE = "#e8eaec", "#3a3f44"

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isthmus",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.facecolor": "none",
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}
_WIDTH = 10.0  # inches; 720 units of the view box


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """Yields an empty figure whose settings hold until the block ends: write the SVG inside it.

    Args:
        height: In inches; the width is that of a page.

    Yields:
        Figure: With a transparent ground and constrained layout.
    """
    # Text and ids are decided while drawing, so the settings must hold until the SVG is written.
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        yield figure


def svg_text(figure: Figure, name: str, title: str, description: str) -> str:
    """Writes a figure as SVG text whose ink and condition colours are CSS variables.

    Args:
        figure: What was drawn, still inside its `drawing` block.
        name: Prefix of the identifiers in the SVG; unique on a page.
        title: What the figure is called for readers who cannot see it.
        description: What it shows, in words.

    Returns:
        One SVG element, without what only a file needs.
    """
    stream = StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    referenced = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(
        r' id="([^"]+)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in referenced else "",
        text,
    )
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for condition, style in STYLES.items():
        text = text.replace(style.light, f"var(--{condition.replace('_', '-')}, {style.light})")
    text = text.replace(INK, "currentColor").replace(RULE, f"var(--rule, {RULE})")
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]+", r"\1 var(--sans, sans-serif)", text)
    body = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]+"', body)
    inside = body[body.index(">") + 1 :]
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-description"'
        f' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f" {view_box[0] if view_box else ''}>"
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-description">{html.escape(description)}</desc>{inside}'
    )


def svg_file(svg: str) -> str:
    """Returns a figure as a file of its own, in plain colours that every program can read.

    Args:
        svg: As `svg_text` returns it.

    Returns:
        The same element with the colours of a light page; a browser on a dark one takes others.
    """
    plain = re.sub(r"var\(--[\w-]+, ([^()]+)\)", r"\1", svg).replace("currentColor", INK)
    darker = {style.light: style.dark for style in STYLES.values()}
    darker |= {INK: _DARK_INK, RULE: _DARK_RULE}
    rules = " ".join(
        f'[style*="{name}: {light}"] {{ {name}: {dark} !important; }}'
        for light, dark in darker.items()
        for name in ("fill", "stroke")
        if f"{name}: {light}" in plain
    )
    start, rest = plain.split(">", 1)
    return f"{start}><style>@media (prefers-color-scheme: dark) {{ {rules} }}</style>{rest}\n"
