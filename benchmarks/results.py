"""What a run of the benchmarks found: gathering it, and writing it as JSON, figure and table."""

import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from benchmarks.timing import Case, Comparison, Variant, compare, interleaved_costs, wall_seconds
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isthmus.core.artifacts import write_json
from isthmus.core.errors import ArtifactError
from isthmus.core.places import write_text
from isthmus.core.provenance import machine, package_versions, source_commit

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
"""Between these lines `make bench` writes its table."""

_AXIS_END = 1.6
_INK, _BAR, _MISSED, _RULE = "#1b1f23", "#7a9cc6", "#d98c5f", "#d8d8d4"
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isthmus",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class CheckResult:
    """Whether values that must agree do.

    Attributes:
        case: Group and name of the case.
        what: What is compared with what.
        difference: How far they are apart.
        tolerance: How far they may be.
    """

    case: str
    what: str
    difference: float
    tolerance: float

    @property
    def is_equal(self) -> bool:
        """Whether they agree."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class CaseResult:
    """Everything that was found out about one case.

    Attributes:
        case: Group and name.
        checks: Values that were compared, before anything was timed.
        comparisons: Ratios.
        costs: Seconds (or bytes) of every variant, one per round.
    """

    case: str
    checks: tuple[CheckResult, ...]
    comparisons: tuple[Comparison, ...]
    costs: Mapping[str, tuple[float, ...]]


def check_case(case: Case) -> tuple[CheckResult, ...]:
    """Compares the values of a case, without timing anything."""
    name = f"{case.group}: {case.name}"
    return tuple(CheckResult(name, c.what, c.difference(), c.tolerance) for c in case.checks)


def measure_case(
    case: Case, n_repeats: int, clock: Callable[[Variant], float] = wall_seconds
) -> CaseResult:
    """Compares the values of a case, then times its variants turn by turn.

    Args:
        case: What to run.
        n_repeats: Rounds, unless the case has its own number.
        clock: `wall_seconds` or `processor_seconds`; not used where variants return their cost.

    Returns:
        What was found.
    """
    checks = check_case(case)
    n_rounds = case.n_repeats or n_repeats
    if case.returns_cost:
        costs = interleaved_costs(case.variants, n_rounds, _returned, n_warm_up=0)
    else:
        costs = interleaved_costs(case.variants, n_rounds, clock, n_warm_up=case.n_warm_up)
    comparisons = tuple(compare(case, pair, costs) for pair in case.pairs)
    return CaseResult(f"{case.group}: {case.name}", checks, comparisons, costs)


def conditions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a reader needs to repeat or to doubt a run; no host name and no path.

    Args:
        settings: Options of the run.

    Returns:
        JSON values.
    """
    return {
        **settings,
        "machine": {
            **machine(),
            "processor_model": processor_model(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": package_versions(),
        "commit": source_commit(),
    }


def processor_model(path: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's name as Linux gives it, elsewhere its architecture."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def to_json(found: Sequence[CaseResult], where: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run as JSON values: conditions, checks, ratios, and raw costs.

    Args:
        found: What was measured.
        where: What `conditions` returned.

    Returns:
        JSON values.
    """
    return {
        "conditions": dict(where),
        "checks": [{**asdict(c), "is_equal": c.is_equal} for one in found for c in one.checks],
        "ratios": [
            {"group": c.group, "case": c.case, **asdict(c.pair), **asdict(c.ratio)}
            | {"verdict": c.verdict}
            for one in found
            for c in one.comparisons
        ],
        "raw": {
            one.case: {name: list(values) for name, values in one.costs.items()} for one in found
        },
    }


def write_results(
    folder: Path,
    name: str,
    found: Sequence[CaseResult],
    where: Any,
    *,
    axis_end: float = _AXIS_END,
) -> None:
    """Writes `NAME.json` and `NAME.svg`.

    Args:
        folder: Where to.
        name: Of the two files.
        found: What was measured.
        where: What `conditions` returned.
        axis_end: Where the axis of the figure ends.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    write_json(folder / f"{name}.json", to_json(found, where))
    comparisons = [c for one in found for c in one.comparisons]
    write_text(folder / f"{name}.svg", figure_of(comparisons, axis_end))


def write_table(page: Path, found: Sequence[CaseResult], where: Mapping[str, Any]) -> None:
    """Replaces what stands between `BEGIN` and `END` of a page by the table of a run.

    Args:
        page: Markdown file that has both marks.
        found: What was measured.
        where: What `conditions` returned.

    Raises:
        ArtifactError: If the page cannot be read or does not have both marks.
        OutputError: If it cannot be written to.
    """
    write_between(page, table_of(found, where), (BEGIN, END))


def write_between(page: Path, lines: str, marks: tuple[str, str]) -> None:
    """Replaces what stands between two marks of a page.

    Args:
        page: Markdown file that has the first mark and, after it, the second.
        lines: What is to stand there, the last line ended.
        marks: The two marks.

    Raises:
        ArtifactError: If the page cannot be read or does not have both marks.
        OutputError: If it cannot be written to.
    """
    begin_mark, end_mark = marks
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"cannot read {page}: {error.strerror}") from error
    before, begin, rest = text.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise ArtifactError(
            f"{page} lacks {begin_mark} or, after it, {end_mark}: restore both lines"
        )
    write_text(page, f"{before}{begin_mark}\n\n{lines}\n{end_mark}{after}")


def table_of(found: Sequence[CaseResult], where: Mapping[str, Any]) -> str:
    """Returns a Markdown table of all ratios, headed by where they were measured.

    Args:
        found: What was measured.
        where: What `conditions` returned.

    Returns:
        Lines of Markdown, the last one ended.
    """
    checks = [check for one in found for check in one.checks]
    n_equal = sum(check.is_equal for check in checks)
    processor = where["machine"]
    versions = ", ".join(f"{p} {where['versions'][p]}" for p in ("python", "torch", "transformers"))
    conditions_line = (
        f"{processor['processor_model']}, {processor['n_cpus']} processors, {where['threads']} "
        f"threads, {where['clock']} time; {versions}; commit `{where['commit']}`."
    )
    lines = [
        conditions_line,
        f"{n_equal} of {len(checks)} value checks passed in the same run.",
        "",
        "| case | measured | against | ratio of | median | 95 % interval | range | n | limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(c) for one in found for c in one.comparisons),
    ]
    return "\n".join(lines) + "\n"


def figure_of(comparisons: Sequence[Comparison], axis_end: float = _AXIS_END) -> str:
    """Draws every ratio as a bar with its interval and range, one panel per group.

    Args:
        comparisons: At least one.
        axis_end: Where the axis ends; longer bars are cut off there.

    Returns:
        SVG text; lines mark 1 and 1.05, and the axis ends where differences would be lost.
    """
    groups = list(dict.fromkeys(c.group for c in comparisons))
    by_group = {group: [c for c in comparisons if c.group == group] for group in groups}
    sizes = [len(rows) + 1.5 for rows in by_group.values()]
    stream = StringIO()
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(10, 0.24 * sum(sizes)), layout="constrained")
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=sizes)[:, 0]
        for axes, (group, rows) in zip(panels, by_group.items(), strict=True):
            _draw_panel(axes, group, rows, axis_end)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _draw_panel(axes: Axes, group: str, rows: Sequence[Comparison], axis_end: float) -> None:
    axes.set_title(group)
    for height, row in enumerate(rows):
        ratio, colour = row.ratio, _MISSED if row.verdict == "above" else _BAR
        axes.barh(height, min(ratio.median, axis_end), height=0.62, color=colour, linewidth=0)
        axes.plot(ratio.range, [height] * 2, color=_INK, linewidth=0.8)
        axes.plot(ratio.interval, [height] * 2, color=_INK, linewidth=2.2)
        place = axes.get_yaxis_transform()
        axes.text(1.01, height, f"{ratio.median:.3f}", transform=place, va="center")
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, axis_end)
    axes.axvline(1, color=_INK, linewidth=0.8)
    axes.axvline(1.05, color=_INK, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.grid(axis="x", color=_RULE, linewidth=0.6)
    axes.tick_params(axis="y", length=0)


def _label(row: Comparison) -> str:
    note = "" if row.pair.kind == "time" else f" ({row.pair.kind})"
    return f"{row.case}: {row.pair.measured} / {row.pair.against}{note}"


def _row(comparison: Comparison) -> str:
    pair, ratio = comparison.pair, comparison.ratio
    limit = "" if pair.limit is None else f"{pair.limit:g}: {comparison.verdict}"
    cells = (
        f"{comparison.group}: {comparison.case}",
        pair.measured,
        pair.against,
        pair.kind,
        f"{ratio.median:.3f}",
        "{:.3f} to {:.3f}".format(*ratio.interval),
        "{:.3f} to {:.3f}".format(*ratio.range),
        str(ratio.n),
        limit,
    )
    return f"| {' | '.join(cells)} |"


def _returned(variant: Variant) -> float:
    return float(variant())


def failed_checks(found: Iterable[CaseResult]) -> list[CheckResult]:
    """Returns the checks whose values do not agree."""
    return [check for one in found for check in one.checks if not check.is_equal]
