"""`report`: writes the report of a run again."""

from pathlib import Path

from isthmus.evaluation.report import render_report


def report(run: str | Path) -> Path:
    """Writes `report.html` from the files of a run's folder.

    Args:
        run: Results folder.

    Returns:
        The report.

    Raises:
        ArtifactError: If a file of the run is missing or damaged.
        OutputError: If the report cannot be written.
    """
    return render_report(Path(run))
