"""The report of a reproduction: the paper's figures beside ours, then every study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from isthmus.core.places import write_text
from isthmus.evaluation.figure_style import STYLES
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.paper import PAPER_FIGURES
from isthmus.evaluation.paper_matching import found_for
from isthmus.evaluation.report import interval, short_name

REPORT_NAME = "report.html"


@dataclass(frozen=True)
class ReportedPart:
    """One part of a reproduction as its report shows it.

    Attributes:
        name: Identifier.
        title: Heading.
        measurements: Every number.
        notes: Sentences.
        figures: SVG text by title.
        problem: Why it is not there; empty when it is.
    """

    name: str
    title: str
    measurements: Sequence[Measurement] = ()
    notes: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def table(self) -> list[Measurement]:
        """The numbers of the test split."""
        return [m for m in self.measurements if m.split in {"test", None}]


def render_reproduction(
    folder: Path,
    parts: Sequence[ReportedPart],
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Path:
    """Writes the self-contained page of a reproduction.

    Args:
        folder: Where to.
        parts: What was run, in the order of the page.
        settings: `what`, `kind`, `seed`, and `models` by name where they are not the organisms. The
            paper's figures are shown where `what` is `paper`.
        provenance: `commit` and `versions`.

    Returns:
        The page.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    every = [m for part in parts for m in part.measurements]
    # Only the organisms have known names; of other models every target stands in every row.
    others = bool(settings["models"])
    printed = PAPER_FIGURES if settings["what"] == "paper" else ()
    figures = [(figure, found_for(figure, every, others=others)) for figure in printed]
    environment = Environment(
        loader=PackageLoader("isthmus.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": interval, "short_name": short_name}
    page = environment.get_template("reproduction.html.jinja").render(
        figures=figures,
        parts=parts,
        settings=settings,
        provenance=provenance,
        n_measurements=len(every),
        styles=STYLES,
    )
    write_text(folder / REPORT_NAME, page)
    return folder / REPORT_NAME
