"""A finished crossing as files, so that a stopped or repeated run does not compute it again.

Crossings lie in the cache under a key that changes with the configuration, both models and
isthmus' own code.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.core.artifacts import read_json, write_json
from isthmus.core.errors import ArtifactError
from isthmus.core.identity import ModelIdentity
from isthmus.core.places import atomic_folder
from isthmus.core.provenance import StageClock, code_hash, package_versions
from isthmus.directions.files import save_direction
from isthmus.evaluation.measurements import Measurement, read_results, write_results
from isthmus.maps.files import save_map
from isthmus.models.organisms import cache_folder
from isthmus.workflows.config import RunConfig
from isthmus.workflows.crossing import CrossingResult
from isthmus.workflows.twins import TwinSplits

# What changes how a crossing is carried out but not what it finds.
_NOT_IN_KEY = {"targets", "source", "n_parallel", "questions"}


@dataclass(frozen=True)
class CrossingFiles:
    """A finished crossing.

    Attributes:
        folder: Where its files lie.
        measurements: Every number.
        completions: Rows side by side, with both models' names.
        summary: Best map, its setting, both models' identities, notes, seconds per stage.
        is_from_cache: Whether it was found rather than computed.
    """

    folder: Path
    measurements: list[Measurement]
    completions: dict[str, Any]
    summary: dict[str, Any]
    is_from_cache: bool

    def copy_artifacts(self, place: Path) -> None:
        """Copies directions and maps to a folder that does not exist yet."""
        shutil.copytree(self.folder / "artifacts", place)


def crossing_folder(
    config: RunConfig, splits: TwinSplits, source: ModelIdentity, target: ModelIdentity
) -> Path:
    """Returns where a crossing lies, or will lie, in the cache."""
    fields = config.model_dump(mode="json", exclude=_NOT_IN_KEY)
    content = [fields, source.to_json(), target.to_json(), package_versions(), code_hash()]
    content.append([repr(splits.train), repr(splits.validation), repr(splits.test)])
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "crossings" / key[:32]


def find_crossing(folder: Path) -> CrossingFiles | None:
    """Returns the crossing in a folder, or None when there is none or it is damaged."""
    try:
        return _read(folder, is_from_cache=True)
    except ArtifactError:
        return None


def import_crossing(made: Path, name: str, *, is_from_cache: bool) -> CrossingFiles:
    """Puts a crossing that was computed elsewhere into this machine's cache and reads it there.

    Args:
        made: Its files.
        name: Its folder's name in a cache.
        is_from_cache: Whether it was found in a cache rather than computed.

    Returns:
        The crossing in the cache; one that was there is replaced.

    Raises:
        ArtifactError: If the files are no crossing.
        OutputError: If the cache cannot be written to.
    """
    own = cache_folder() / "crossings" / name
    with atomic_folder(own, replace=True) as staging:
        shutil.copytree(made, staging, dirs_exist_ok=True)
    return _read(own, is_from_cache=is_from_cache)


def _read(folder: Path, *, is_from_cache: bool) -> CrossingFiles:
    if not (folder / "artifacts").is_dir():
        raise ArtifactError(f"no crossing at {folder}")
    return CrossingFiles(
        folder,
        read_results(folder / "results.jsonl"),
        read_json(folder / "completions.json"),
        read_json(folder / "summary.json"),
        is_from_cache,
    )


def keep_crossing(folder: Path, result: CrossingResult, clock: StageClock) -> CrossingFiles:
    """Writes a crossing as a whole and reads it back.

    Args:
        folder: Its place in the cache.
        result: What was found.
        clock: Its stages.

    Returns:
        The crossing as it was written.

    Raises:
        OutputError: If the cache cannot be written to.
    """
    summary = {
        "source": result.source_direction.model.to_json(),
        "target": result.native_direction.model.to_json(),
        "best_map": result.best_map,
        "site": str(result.chosen.site),
        "positions": result.chosen.positions,
        "strength": result.chosen.dose,
        "notes": list(result.notes),
        "stages": clock.to_json(),
    }
    with atomic_folder(folder, replace=True) as staging:
        write_results(staging / "results.jsonl", result.measurements)
        write_json(staging / "completions.json", result.completions)
        write_json(staging / "summary.json", summary)
        save_direction(staging / "artifacts" / "source-direction", result.source_direction)
        save_direction(staging / "artifacts" / "native-direction", result.native_direction)
        for method, fitted in result.maps.items():
            save_map(staging / "artifacts" / f"map-{method}", fitted)
        for method, carried in result.transferred.items():
            save_direction(staging / "artifacts" / f"transferred-{method}", carried)
    return _read(folder, is_from_cache=False)
