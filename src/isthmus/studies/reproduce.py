"""`reproduce`: every task and table of the paper beside the printed figures, or the matrix.

1. The models are the organisms, or those of the run configurations that are given. Organisms of the
   matrix that do not come with the package are built first, once.
2. Every part is a study or the crossings of one task; `part_running.py` runs them.
3. The report lays the paper's figures beside ours and says what compares.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isthmus.core.artifacts import write_json
from isthmus.core.errors import ConfigError, IncompleteError
from isthmus.core.places import atomic_folder, require_replaceable, write_text
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import StageClock, machine, package_versions, source_commit
from isthmus.evaluation.figure_style import svg_file
from isthmus.evaluation.measurements import write_results
from isthmus.evaluation.reproduction import ReportedPart, render_reproduction
from isthmus.studies.matrix_parts import matrix_parts
from isthmus.studies.pair_kinds import kinds_of_pairs
from isthmus.studies.paper_models import Scope
from isthmus.studies.paper_parts import OF_ORGANISMS_ALONE, PARTS
from isthmus.studies.part_kinds import Part
from isthmus.studies.part_running import run_parts
from isthmus.workflows.config import RunConfig, read_config
from isthmus.workflows.engines.choosing import EngineName, engine_named
from isthmus.workflows.engines.jobs import Engine
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.organism_missing import ensure_organisms
from isthmus.workflows.twins import read_splits


@dataclass(frozen=True)
class Reproduction:
    """What a reproduction wrote.

    Attributes:
        folder: The results folder.
        report: The page.
        parts: Every part with its numbers, or why it is missing.
        failed: Names of parts that were to be measured and could not be; those that no
            configuration is about are not among them unless somebody named them.
    """

    folder: Path
    report: Path
    parts: tuple[ReportedPart, ...]
    failed: tuple[str, ...] = ()

    def require_complete(self) -> None:
        """Refuses a reproduction in which a part failed; its folder is there all the same.

        Raises:
            IncompleteError: If one did.
        """
        if self.failed:
            raise IncompleteError(
                f"{len(self.failed)} of {len(self.parts)} parts failed: {', '.join(self.failed)}; "
                f"why stands above and in {self.report}, what was measured is written"
            )


def reproduce(
    what: str = "paper",
    *,
    out: str | Path | None = None,
    is_quick: bool = False,
    only: Sequence[str] | None = None,
    config: Sequence[RunConfig | str | Path] | None = None,
    is_cached: bool = True,
    n_processes: int | None = None,
    engine: EngineName | Engine = "local",
    address: str | None = None,
    n_workers: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Runs every task and study of arXiv 2503.04429 on the shipped organisms, or on other models.

    Or the transfer matrix: every ordered pair of six organisms, of which two do not come with the
    package. These are trained first and kept in the cache; a quick matrix does without them.

    Writes `results.jsonl`, `provenance.json`, `figures/` and `report.html`; the folder appears when
    all of it is there. A part that fails is reported there and in `failed`, and raises nothing.

    Args:
        what: `paper` or `matrix`.
        out: Results folder, `runs/WHAT` when not given; an earlier reproduction there is replaced,
            anything else refused.
        is_quick: Whether fewer questions and layers are measured.
        only: Names of parts; when not given all but those that have no place in the paper.
        config: Run configurations, or YAML files, whose models and prompts take the place of the
            organisms; parts whose task none of them has are reported as missing.
        is_cached: Whether parts that the cache holds are used rather than computed again.
        n_processes: How many parts are computed at once, each in a process of its own with one
            thread; as many as there are processors when not given, 1 with a GPU. With engine `ray`
            `n_workers` says it.
        engine: Who computes parts, and entries of a matrix: `local` is this machine, `ray` workers
            of a Ray cluster with one thread each.
        address: With `ray`: of a running cluster, or `auto`; one is started here when not given.
        n_workers: With `ray`: how many parts or entries at once.
        seed: Seed of everything random; when not given, that of each configuration, and 0 on the
            organisms.
        progress: Who shows progress.

    Returns:
        The folder, its page and the parts.

    Raises:
        ConfigError: If there is nothing of this name to reproduce, no such part, a configuration
            cannot be used, or two of one task are about the same pair of models.
        DataError: If questions that a configuration names cannot be asked.
        OutputError: If the place cannot be written to or holds something else.
        EngineError: If the cluster cannot be reached or loses its workers too often.
    """
    every = _parts_of(what, is_quick=is_quick)
    if unknown := [name for name in only or () if name not in every]:
        raise ConfigError(f"no part {unknown}: there are {', '.join(every)}")
    place = Path(out if out is not None else f"runs/{what}")
    require_replaceable(place, "results.jsonl")
    given = [one if isinstance(one, RunConfig) else read_config(one) for one in config or ()]
    asked_seed = {} if seed is None else {"seed": seed}
    seeded = tuple(one.model_copy(update=asked_seed) for one in given)
    _require_usable(seeded)
    clock = StageClock(progress or SilentProgress())
    chosen = engine_named(engine, address, n_workers)
    far = None if isinstance(chosen, LocalEngine) else chosen
    scope = Scope(is_quick, seed or 0, seeded, engine=far)
    wanted = {
        name: part
        for name, part in every.items()
        if (name in only if only else not part.when_named)
    }
    if what == "matrix" and not given:
        needed = [name for part in wanted.values() for name in part.organisms]
        ensure_organisms(list(dict.fromkeys(needed)), clock)
    parts = run_parts(wanted, scope, clock, is_cached=is_cached, n_processes=n_processes or _most())
    provenance = {
        "commit": source_commit(),
        "versions": package_versions(),
        "machine": machine(),
        "stages": clock.to_json(),
    }
    seeds, settings = _settings(what, scope)
    with atomic_folder(place, replace=True) as folder:
        write_results(folder / "results.jsonl", [m for part in parts for m in part.measurements])
        write_json(folder / "provenance.json", {**provenance, **settings})
        for part in parts:
            for number, svg in enumerate(part.figures.values(), start=1):
                write_text(folder / "figures" / f"{part.name}-{number}.svg", svg_file(svg))
        in_words = {**settings, "seed": ", ".join(map(str, seeds))}
        render_reproduction(folder, parts, in_words, provenance)
    failed = _failed(wanted, parts, scope, only or ())
    return Reproduction(place, place / "report.html", tuple(parts), failed)


def _require_usable(given: Sequence[RunConfig]) -> None:
    """Refuses, before hours of work, questions that no part can ask and pairs that come twice."""
    pairs = Counter((one.task, one.source, target) for one in given for target in one.targets)
    for (task, source, target), n in pairs.items():
        if n > 1:
            raise ConfigError(
                f"{source} → {target} is in two configurations of task {task!r}: their numbers "
                "could not be told apart, give each a reproduction of its own"
            )
    for one in given:
        if one.question_files:
            read_splits(one)


def _settings(what: str, scope: Scope) -> tuple[list[int], dict[str, Any]]:
    """Returns the seeds, and what provenance says of them, of the models and of their pairs."""
    seeds = list(dict.fromkeys(one.seed for one in scope.given)) or [scope.seed]
    models = [name for one in scope.given for name in (one.source, *one.targets)]
    return seeds, {
        "what": what,
        "kind": "Quick" if scope.is_quick else "Full",
        "seed": seeds[0] if len(seeds) == 1 else seeds,
        "models": list(dict.fromkeys(models)),
        "pairs": [
            {"source": source, "target": target, "kind": kind}
            for (source, target), kind in kinds_of_pairs(scope.given).items()
        ],
    }


def _failed(
    wanted: Mapping[str, Part], parts: Sequence[ReportedPart], scope: Scope, only: Sequence[str]
) -> tuple[str, ...]:
    missing = [part.name for part in parts if part.problem]
    if len(missing) == len(parts):
        return tuple(missing)
    tasks = {one.task for one in scope.given}

    def is_meant(name: str) -> bool:
        is_about = wanted[name].task in tasks and name not in OF_ORGANISMS_ALONE
        return not scope.given or name in only or is_about

    return tuple(name for name in missing if is_meant(name))


def _parts_of(what: str, *, is_quick: bool) -> dict[str, Part]:
    if what == "paper":
        return PARTS
    if what == "matrix":
        return matrix_parts(is_quick=is_quick)
    raise ConfigError(f"nothing to reproduce called {what!r}: there is 'paper' and 'matrix'")


def _most() -> int:
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1
