"""Runs the parts of a reproduction, one after another or in processes of their own.

1. A finished part is kept in the cache; a part that is there is not computed again.
2. A part that cannot run is reported with the reason; the others go on.
3. Processes share nothing but the cache; each computes one part with one thread.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isthmus.core.artifacts import sha256_of_file
from isthmus.core.errors import IsthmusError
from isthmus.core.progress import SilentProgress
from isthmus.core.provenance import StageClock, StageTime
from isthmus.evaluation.reproduction import ReportedPart
from isthmus.studies.matrix_parts import matrix_parts
from isthmus.studies.paper_models import Scope, keys_of_models
from isthmus.studies.paper_parts import LONGEST, PARTS, Part
from isthmus.studies.result import StudyResult
from isthmus.studies.study_files import find_study, keep_study, study_folder


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
    if n_processes > 1:
        own = replace(scope, is_alone=False)
        missing = [n for n in parts if not is_cached or _kept(n, parts[n], own) is None]
        if len(missing) > 1:
            problems = _in_processes(missing, own, clock, n_processes, is_cached=is_cached)
            return [
                _collected(name, part, own, problems.get(name, "")) for name, part in parts.items()
            ]
    return [
        _reported(name, part, scope, clock, is_cached=is_cached) for name, part in parts.items()
    ]


def _in_processes(
    names: Sequence[str], scope: Scope, clock: StageClock, n_processes: int, *, is_cached: bool
) -> dict[str, str]:
    """Computes parts into the cache; returns by name why one could not be."""
    problems: dict[str, str] = {}
    long = [name for name in LONGEST if name in names]
    ordered = [*long, *(name for name in names if name not in long)]
    with (
        ThreadPoolExecutor(n_processes) as pool,
        clock.shown.stage("parts", len(names)) as advance,
    ):
        waiting = {pool.submit(_in_process, n, scope, is_cached=is_cached): n for n in ordered}
        for done in as_completed(waiting):
            name = waiting[done]
            took, problem = done.result()
            clock.stages.append(took)
            if problem:
                problems[name] = problem
            clock.note(f"{name}: {problem or 'done'}")
            advance(1)
    return problems


def _in_process(name: str, scope: Scope, *, is_cached: bool) -> tuple[StageTime, str]:
    asked = {"name": name, "scope": scope.to_json(), "is_cached": is_cached}
    start = time.perf_counter()
    # A program of its own rather than a fork, which would inherit locks of torch's threads.
    done = subprocess.run(  # noqa: S603 - this very module
        [sys.executable, "-m", __name__],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    took = StageTime(f"part: {name}", time.perf_counter() - start, 0.0)
    if done.returncode == 0:
        return replace(took, cpu_s=float(done.stdout.strip().rpartition("\n")[2])), ""
    said = done.stderr.strip().rpartition("\n")[2]
    return took, said or f"its process ended with {done.returncode}: want of memory, perhaps"


def _collected(name: str, part: Part, scope: Scope, problem: str) -> ReportedPart:
    result = None if problem else _kept(name, part, scope)
    if result is None:
        problem = problem or "it was computed but is not in the cache: run with one process"
        return ReportedPart(name, part.title, problem=problem)
    return ReportedPart(name, part.title, result.measurements, result.notes, result.figures)


def _kept(name: str, part: Part, scope: Scope) -> StudyResult | None:
    try:
        place = _place(name, part, scope)
    except IsthmusError:
        # Why it cannot run is said by running it.
        return None
    return None if place is None else find_study(place)


def work(asked: Mapping[str, Any]) -> None:
    """Computes one part into the cache: what a process does.

    Args:
        asked: `name`, `scope` and `is_cached` as JSON values.

    Raises:
        IsthmusError: Whatever makes the part impossible.
    """
    torch.set_num_threads(1)
    scope = Scope.from_json(asked["scope"], is_alone=False)
    name, clock = asked["name"], StageClock(SilentProgress())
    part = {**PARTS, **matrix_parts(is_quick=scope.is_quick)}[name]
    _result(name, part, scope, clock, is_cached=asked["is_cached"])


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


if __name__ == "__main__":
    try:
        work(json.loads(sys.stdin.read()))
    except IsthmusError as error:
        sys.exit(str(error).replace("\n", " "))
    sys.stdout.write(f"{time.process_time()}\n")
