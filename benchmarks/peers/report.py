"""What a comparison with other libraries found, as the section of a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import CaseResult, table_of, write_between

MARKS = ("<!-- peers: begin -->", "<!-- peers: end -->")
"""Between these lines the comparison writes its tables."""


def figure_end(found: Sequence[CaseResult]) -> float:
    """Returns where the figure's axis has to end so that no ratio is cut off."""
    return 1.1 * max((c.ratio.range[1] for one in found for c in one.comparisons), default=1.6)


def write_page(page: Path, found: Sequence[CaseResult], where: Mapping[str, Any]) -> None:
    """Replaces what stands between the marks of a page.

    Args:
        page: Markdown file that has both marks.
        found: What was measured.
        where: Conditions, with libraries, environments and what could not be done.

    Raises:
        ArtifactError: If the page cannot be read or does not have both marks.
        OutputError: If it cannot be written to.
    """
    write_between(page, section_of(found, where), MARKS)


def section_of(found: Sequence[CaseResult], where: Mapping[str, Any]) -> str:
    """Returns the tables: ratios, calls and versions, sizes, and what could not be done.

    Args:
        found: What was measured.
        where: Conditions, with libraries, environments and what could not be done.

    Returns:
        Lines of Markdown, the last one ended.
    """
    unable = [(one["library"], one["workload"], one["reason"]) for one in where["unable"]]
    parts = [
        table_of(found, where),
        _table(
            ("library", "captures with", "steers with"),
            [
                (
                    f"{name} ({_versions(about)})",
                    f"`{about['capture_call']}`",
                    f"`{about['steer_call']}`",
                )
                for name, about in where["libraries"].items()
            ],
        ),
    ]
    parts.append(
        _table(
            ("environment", "packages", "MB", "MB without torch"),
            [
                (name, *(str(round(size[key])) for key in _SIZES))
                for name, size in where["environments"].items()
            ],
        )
    )
    if unable:
        parts.append(_table(("not done by", "what", "why"), unable))
    return "\n".join(parts)


_SIZES = ("n_packages", "size_mb", "size_without_torch_mb")


def _versions(about: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {version}" for name, version in about["versions"].items() if name != "torch"
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in lines)
