"""A finished study as files: a stopped or repeated reproduction does not compute it again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.core.artifacts import read_json, write_json
from isthmus.core.errors import ArtifactError
from isthmus.core.places import atomic_folder
from isthmus.core.provenance import code_hash, package_versions
from isthmus.evaluation.measurements import read_results, write_results
from isthmus.models.organisms import cache_folder
from isthmus.studies.result import StudyResult


def study_folder(name: str, settings: dict[str, Any], models: Sequence[str]) -> Path:
    """Returns where a study lies, or will lie, in the cache.

    Args:
        name: Which study.
        settings: What it was asked for, as JSON values.
        models: Hashes of the models that it reads.

    Returns:
        A folder whose name changes with all of these, with isthmus' own code and with versions.
    """
    content = [name, settings, list(models), package_versions(), code_hash()]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "studies" / f"{name}-{key[:24]}"


def find_study(folder: Path) -> StudyResult | None:
    """Returns the study in a folder, or None when there is none or it is damaged."""
    try:
        kept = read_json(folder / "study.json")
        measurements = tuple(read_results(folder / "results.jsonl"))
        return StudyResult(
            kept["name"],
            measurements,
            tuple(kept["notes"]),
            dict(kept["figures"]),
            tuple(kept["rows"]),
        )
    except (ArtifactError, KeyError, TypeError):
        return None


def keep_study(folder: Path, result: StudyResult) -> None:
    """Writes a study as a whole.

    Args:
        folder: Its place in the cache.
        result: What it found.

    Raises:
        OutputError: If the cache cannot be written to.
    """
    with atomic_folder(folder, replace=True) as staging:
        write_results(staging / "results.jsonl", result.measurements)
        fields = {"name": result.name, "notes": list(result.notes), "figures": result.figures}
        write_json(staging / "study.json", {**fields, "rows": list(result.rows)})
