"""`reproduce`: every task and table of the paper, beside the printed figures.

1. The models are the organisms, or those of the run configurations that are given.
2. Every part is a study or the crossings of one task; finished ones are kept in the cache, so that
   a stopped or repeated reproduction goes on where it was.
3. A part that cannot run (an extra or an organism is missing) is reported so; the others go on.
4. The report lays the paper's figures beside ours and says what compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.core.artifacts import atomic_folder, sha256_of_file, write_json, write_text
from isthmus.core.errors import ConfigError, IsthmusError, OutputError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import StageClock, machine, package_versions, source_commit
from isthmus.evaluation.figure_style import svg_file
from isthmus.evaluation.measurements import write_results
from isthmus.evaluation.reproduction import ReportedPart, render_reproduction
from isthmus.studies.paper_models import Scope, keys_of_models
from isthmus.studies.paper_parts import PARTS, Part
from isthmus.studies.result import StudyResult
from isthmus.studies.study_files import find_study, keep_study, study_folder
from isthmus.workflows.config import RunConfig, read_config


@dataclass(frozen=True)
class Reproduction:
    """What a reproduction wrote.

    Attributes:
        folder: The results folder.
        report: The page.
        parts: Every part with its numbers, or why it is missing.
    """

    folder: Path
    report: Path
    parts: tuple[ReportedPart, ...]


def reproduce(
    what: str = "paper",
    *,
    out: str | Path = "runs/paper",
    is_quick: bool = False,
    only: Sequence[str] | None = None,
    configs: Sequence[RunConfig | str | Path] = (),
    is_cached: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Reproduction:
    """Runs every task and study of arXiv 2503.04429 on the shipped organisms, or on other models.

    Writes `results.jsonl`, `provenance.json`, `figures/` and `report.html`; the folder appears when
    all of it is there.

    Args:
        what: `paper`.
        out: Results folder; an earlier reproduction there is replaced, anything else refused.
        is_quick: Whether fewer questions and layers are measured.
        only: Names of parts; all when not given.
        configs: Run configurations, or YAML files, whose models and prompts take the place of the
            organisms; parts whose task none of them has are reported as missing.
        is_cached: Whether parts that the cache holds are used rather than computed again.
        seed: Seed of everything random.
        progress: Who shows progress.

    Returns:
        The folder, its page and the parts.

    Raises:
        ConfigError: If there is nothing of this name to reproduce, no such part, or a configuration
            cannot be used.
        OutputError: If the place cannot be written to or holds something else.
    """
    if what != "paper":
        raise ConfigError(f"nothing to reproduce called {what!r}: there is 'paper'")
    if unknown := [name for name in only or () if name not in PARTS]:
        raise ConfigError(f"no part {unknown}: there are {', '.join(PARTS)}")
    place = Path(out)
    if place.exists() and not (place / "results.jsonl").is_file() and any(place.iterdir()):
        raise OutputError(f"{place} exists and is not a results folder: choose another --out")
    given = [one if isinstance(one, RunConfig) else read_config(one) for one in configs]
    clock = StageClock(progress or SilentProgress())
    scope = Scope(
        is_quick, seed, tuple(config.model_copy(update={"seed": seed}) for config in given)
    )
    parts = [
        _reported(name, part, scope, clock, is_cached=is_cached)
        for name, part in PARTS.items()
        if not only or name in only
    ]
    provenance = {
        "commit": source_commit(),
        "versions": package_versions(),
        "machine": machine(),
        "stages": clock.to_json(),
    }
    models = [name for one in scope.given for name in (one.source, *one.targets)]
    settings = {
        "kind": "Quick" if is_quick else "Full",
        "seed": seed,
        "models": list(dict.fromkeys(models)),
    }
    with atomic_folder(place, replace=True) as folder:
        write_results(folder / "results.jsonl", [m for part in parts for m in part.measurements])
        write_json(folder / "provenance.json", {**provenance, **settings})
        for part in parts:
            for number, svg in enumerate(part.figures.values(), start=1):
                write_text(folder / "figures" / f"{part.name}-{number}.svg", svg_file(svg))
        render_reproduction(folder, parts, settings, provenance)
    return Reproduction(place, place / "report.html", tuple(parts))


def _reported(
    name: str, part: Part, scope: Scope, clock: StageClock, *, is_cached: bool
) -> ReportedPart:
    try:
        with clock.stage(f"part: {name}"):
            result = _result(name, part, scope, clock, is_cached=is_cached)
    except IsthmusError as error:
        clock.note(f"{name} is left out: {error}")
        return ReportedPart(name, part.title, problem=str(error))
    return ReportedPart(name, part.title, result.measurements, result.notes, result.figures)


def _result(
    name: str, part: Part, scope: Scope, clock: StageClock, *, is_cached: bool
) -> StudyResult:
    place = _place(name, part, scope)
    found = find_study(place) if is_cached and place is not None else None
    if found is not None:
        clock.note(f"{name}: found in the cache, nothing to compute")
        return found
    result = part.run(scope, clock.shown)
    # A model of the Hub may have come to this machine only now.
    place = place or _place(name, part, scope)
    if place is not None:
        keep_study(place, result)
    return result


def _place(name: str, part: Part, scope: Scope) -> Path | None:
    settings: dict[str, Any] = {"is_quick": scope.is_quick, "seed": scope.seed}
    models = [f"organism:{one}" for one in part.organisms]
    if scope.given:
        crossings = scope.crossings(part.task)
        models = [name for one in crossings for name in (one.source, *one.targets)]
        files = [path for one in crossings for path in one.question_files]
        settings["configs"] = [one.model_dump(mode="json") for one in crossings]
        settings["questions"] = [sha256_of_file(path) for path in files]
    keys = keys_of_models(models)
    return None if keys is None else study_folder(name, settings, keys)
