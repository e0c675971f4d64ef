"""Runs the parts of a reproduction, one after another, in processes of their own, or on an engine.

1. A finished part is kept in the cache; a part that is there is not computed again.
2. A part that cannot run is reported with the reason; the others go on.
3. Processes share nothing but the cache (`part_processes.py`).
4. A part that has shards of its own hands those to the engine; others are a shard each.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from isthmus.core.artifacts import sha256_of_file
from isthmus.core.errors import EngineError, IsthmusError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import StageClock, StageTime
from isthmus.evaluation.reproduction import ReportedPart
from isthmus.studies.matrix_parts import matrix_parts
from isthmus.studies.paper_models import Scope, keys_of_models
from isthmus.studies.paper_parts import LONGEST, PARTS
from isthmus.studies.part_kinds import Part
from isthmus.studies.part_processes import compute_in_processes
from isthmus.studies.result import StudyResult
from isthmus.studies.study_files import find_study, keep_study, study_folder
from isthmus.workflows.engines.jobs import Engine, Job, Json, Shard, shard_folder

_WORKER = "isthmus.studies.part_running:PartWorker"


def run_parts(
    parts: Mapping[str, Part],
    scope: Scope,
    clock: StageClock,
    *,
    is_cached: bool = True,
    n_processes: int = 1,
) -> list[ReportedPart]:
    """Runs parts and returns what they found, in the order given.

    Args:
        parts: Parts by name; with several processes they must be those of `PARTS` or of a matrix.
        scope: What is measured, and how much.
        clock: Who shows progress and remembers how long each part took.
        is_cached: Whether parts that the cache holds are used rather than computed again.
        n_processes: How many parts at once; 1 computes in this process.

    Returns:
        One report per part, those that could not run among them.
    """
    if scope.engine is not None and not any(part.has_shards for part in parts.values()):
        return _on_engine(scope.engine, parts, scope, clock, is_cached=is_cached)
    if n_processes > 1 and scope.engine is None:
        own = replace(scope, is_alone=False)
        missing = [n for n in parts if not is_cached or _closed(n, parts[n], own) is None]
        if len(missing) > 1:
            problems = _in_processes(missing, own, clock, n_processes, is_cached=is_cached)
            return [
                _collected(name, part, own, problems.get(name, "")) for name, part in parts.items()
            ]
    return [
        _reported(name, part, scope, clock, is_cached=is_cached) for name, part in parts.items()
    ]


def _on_engine(
    engine: Engine, parts: Mapping[str, Part], scope: Scope, clock: StageClock, *, is_cached: bool
) -> list[ReportedPart]:
    """Lets an engine compute every part as one shard."""
    names = _longest_first(parts)
    settings = {"scope": scope.to_json(), "is_cached": is_cached}
    shards = tuple(Shard({"name": name}, name) for name in names)
    job = Job("parts", _WORKER, settings, shards)
    reported: dict[str, ReportedPart] = {}
    with TemporaryDirectory(prefix="isthmus-parts-") as folder:
        answers = engine.run(job, Path(folder), clock.shown)
        for number, (name, answer) in enumerate(zip(names, answers, strict=True)):
            clock.stages.append(StageTime(f"part: {name}", answer["wall_s"], answer["cpu_s"]))
            clock.note(f"{name}: {answer['problem'] or 'done'}")
            found = find_study(shard_folder(Path(folder), number))
            reported[name] = _of_result(name, parts[name], found, answer["problem"])
    return [reported[name] for name in parts]


def _in_processes(
    names: Sequence[str], scope: Scope, clock: StageClock, n_processes: int, *, is_cached: bool
) -> dict[str, str]:
    """Computes parts into the cache; returns by name why one could not be."""
    problems: dict[str, str] = {}
    ordered = _longest_first(names)
    with clock.shown.stage("parts", len(names)) as advance:
        for done in compute_in_processes(ordered, scope, n_processes, is_cached=is_cached):
            clock.stages.append(done.took)
            if done.problem:
                problems[done.name] = done.problem
            clock.note(f"{done.name}: {done.problem or 'done'}")
            advance(1)
    return problems


def _longest_first(names: Iterable[str]) -> list[str]:
    """Returns parts as they should be begun; those of a matrix keep their order."""
    order = {name: number for number, name in enumerate(LONGEST)}
    return sorted(names, key=lambda name: order.get(name, len(order)))


@dataclass(frozen=True)
class PartWorker:
    """Computes parts as shards.

    Attributes:
        settings: `scope` and `is_cached` as JSON values.
        progress: Who shows progress.
    """

    settings: Json
    progress: Progress

    def work(self, asked: Json, place: Path) -> Json:
        """Computes one part.

        Args:
            asked: Its `name`.
            place: Receives it as a study.

        Returns:
            `problem`, empty unless it cannot run, and seconds.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        problem = ""
        try:
            keep_study(place, work({**self.settings, **asked}))
        except IsthmusError as error:
            # Where one part cannot run, the others go on.
            problem = str(error)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"problem": problem, "wall_s": wall, "cpu_s": cpu}


def _collected(name: str, part: Part, scope: Scope, problem: str) -> ReportedPart:
    result = None if problem else _kept(name, part, scope)
    return _of_result(name, part, result, problem)


def _of_result(name: str, part: Part, result: StudyResult | None, problem: str) -> ReportedPart:
    if result is None:
        problem = problem or "it was computed but is not in the cache: run with one process"
        return ReportedPart(name, part.title, problem=problem)
    return ReportedPart(name, part.title, result.measurements, result.notes, result.figures)


def _closed(name: str, part: Part, scope: Scope) -> StudyResult | None:
    """Returns what the cache holds, unless an endpoint left rows of it open: it is asked again."""
    found = _kept(name, part, scope)
    asks = any(one.task == part.task and one.judge == "endpoint" for one in scope.given)
    if found is None or not asks:
        return found
    is_open = any(m.metric == "unjudged_rate" and m.value for m in found.measurements)
    return None if is_open else found


def _kept(name: str, part: Part, scope: Scope) -> StudyResult | None:
    try:
        place = _place(name, part, scope)
    except IsthmusError:
        # Why it cannot run is said by running it.
        return None
    return None if place is None else find_study(place)


def work(asked: Mapping[str, Any]) -> StudyResult:
    """Computes one part into the cache.

    Args:
        asked: `name`, `scope` and `is_cached` as JSON values.

    Returns:
        What the part found.

    Raises:
        IsthmusError: Whatever makes the part impossible.
    """
    torch.set_num_threads(1)
    scope = Scope.from_json(asked["scope"], is_alone=False)
    name, clock = asked["name"], StageClock(SilentProgress())
    part = {**PARTS, **matrix_parts(is_quick=scope.is_quick)}[name]
    return _result(name, part, scope, clock, is_cached=asked["is_cached"])


def _reported(
    name: str, part: Part, scope: Scope, clock: StageClock, *, is_cached: bool
) -> ReportedPart:
    try:
        with clock.stage(f"part: {name}"):
            result = _result(name, part, scope, clock, is_cached=is_cached)
    except EngineError:
        # Without a cluster no other part would fare better.
        raise
    except IsthmusError as error:
        clock.note(f"{name} is left out: {error}")
        return ReportedPart(name, part.title, problem=str(error))
    return ReportedPart(name, part.title, result.measurements, result.notes, result.figures)


def _result(
    name: str, part: Part, scope: Scope, clock: StageClock, *, is_cached: bool
) -> StudyResult:
    place = _place(name, part, scope)
    found = _closed(name, part, scope) if is_cached else None
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


def serve() -> None:
    """Computes what lines of standard input ask for, and answers each with a line."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        start, problem = time.process_time(), ""
        try:
            work(json.loads(line))
        except IsthmusError as error:
            problem = str(error).replace("\n", " ")
        spent = time.process_time() - start
        answers.write(json.dumps({"problem": problem, "cpu_s": spent}) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
