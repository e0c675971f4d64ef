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
from isthmus.evaluation.paper_matching import FoundPair, PairKinds, found_for
from isthmus.evaluation.paper_rows import PaperFigure
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


@dataclass(frozen=True)
class TableRow:
    """One row of the table that lays the paper's figures beside ours.

    Attributes:
        figure: The paper's figure.
        pairs: What every pair of models has beside it.
        absent: Why there is none; empty when there is one.
        compares: What can be compared.
    """

    figure: PaperFigure
    pairs: Sequence[FoundPair]
    absent: str
    compares: str


def table_rows(
    parts: Sequence[ReportedPart], *, is_quick: bool, kinds: PairKinds | None = None
) -> list[TableRow]:
    """Lays the numbers of a reproduction beside the paper's figures.

    Args:
        parts: What was run.
        is_quick: Whether targets were left out.
        kinds: Every pair of models and its kind, where they are not the organisms.

    Returns:
        One row per figure, in the order of the paper's targets.
    """
    every = [m for part in parts for m in part.measurements]
    by_name = {part.name: part for part in parts}
    rows = []
    for figure in PAPER_FIGURES:
        pairs = found_for(figure, every, kinds)
        part = by_name.get(figure.part)
        absent = "" if pairs else _why_absent(figure, part, is_quick=is_quick, kinds=kinds)
        rows.append(TableRow(figure, pairs, absent, figure.compares(others=kinds is not None)))
    return rows


def _why_absent(
    figure: PaperFigure, part: ReportedPart | None, *, is_quick: bool, kinds: PairKinds | None
) -> str:
    if part is None:
        return f"not measured: the part {figure.part} was not asked for"
    if part.problem:
        return f"not measured: the part {figure.part} is not available, see there"
    if kinds is not None and figure.kinds:
        measured = {kinds.get((m.source or "", m.target or "")) for m in part.measurements}
        if not measured & {*figure.kinds}:
            return f"no configuration has such a pair ({', '.join(figure.kinds)}) for {figure.part}"
    if kinds is None and is_quick:
        return "not measured: a quick run leaves this target out, run it without --quick"
    return "not measured"


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
        settings: `what`, `kind`, `seed`, and `models` by name where they are not the organisms;
            then `pairs`, each with `source`, `target` and `kind`, too. The paper's figures are
            shown where `what` is `paper`.
        provenance: `commit` and `versions`.

    Returns:
        The page.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    every = [m for part in parts for m in part.measurements]
    kinds: PairKinds | None = None
    if settings["models"]:
        kinds = {(one["source"], one["target"]): one["kind"] for one in settings["pairs"]}
    figures = []
    if settings["what"] == "paper":
        figures = table_rows(parts, is_quick=settings["kind"] == "Quick", kinds=kinds)
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
        unplaced=_unplaced(every, kinds),
        parts=parts,
        settings=settings,
        provenance=provenance,
        n_measurements=len(every),
        styles=STYLES,
    )
    write_text(folder / REPORT_NAME, page)
    return folder / REPORT_NAME


def _unplaced(measurements: Sequence[Measurement], kinds: PairKinds | None) -> list[str]:
    """Returns pairs of other models that were measured but whose kind is not known."""
    if kinds is None:
        return []
    pairs = dict.fromkeys((m.source, m.target) for m in measurements)
    return [
        f"{short_name(source)} → {short_name(target)}"
        for source, target in pairs
        if source and target and source != target and (source, target) not in kinds
    ]
