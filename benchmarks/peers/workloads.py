"""What libraries are asked to do turn by turn, and whether they come to the same values."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.peers.environments import ISTHMUS, PEERS, Environment
from benchmarks.peers.material import Material
from benchmarks.peers.workers import Worker, WorkerError
from benchmarks.results import CaseResult, measure_case
from benchmarks.timing import Case, Check, Pair, compare, processor_seconds
from rich.console import Console
from safetensors.torch import load_file

from isthmus.core.errors import ConfigError

PLAIN, BARE = "plain hook", "whole pass without a hook"
OLD = "plain hook, transformers 4"
TOLERANCE = 1e-4

LIMITS = {"middle": 1 / 2.2, "last": 1 / 1.2}
"""Largest share of the fastest peer's time that capturing prompts of mixed length may take."""


@dataclass(frozen=True)
class Unable:
    """A library cannot do something.

    Attributes:
        workload: What.
        library: Which.
        reason: Why, in its own last words.
    """

    workload: str
    library: str
    reason: str


@dataclass(frozen=True)
class Workload:
    """One request that every library is given.

    Attributes:
        group: Heading.
        name: What is done.
        verb: Of the request.
        arguments: Of the request.
        tolerance: How far values may be from those of the plain hook.
        limit: Largest share of the fastest peer's time, if one is promised.
    """

    group: str
    name: str
    verb: str
    arguments: dict[str, Any]
    tolerance: float
    limit: float | None = None


def workloads(material: Material) -> list[Workload]:
    """Returns what is asked, in order.

    Args:
        material: Sizes.

    Returns:
        Captures of two corpora at two layers, and one steered generation.
    """
    captures = [  # those with limits first, so that a run that is stopped says most
        Workload(
            "Capture",
            f"{where} layer, {order}",
            "capture",
            {"corpus": corpus, "layer": layer},
            TOLERANCE,
            LIMITS[where] if corpus == "mixed" else None,
        )
        for corpus, order in (("mixed", "as given"), ("sorted", "sorted by the caller"))
        for where, layer in material.layers.items()
    ]
    name = f"{material.n_new} new tokens, batch {material.n_steered}"
    steered = Workload("Steered generation", name, "steer", {}, 0.0)
    n_layers = len(material.layers)
    return [*captures[:n_layers], steered, *captures[n_layers:]]


def measure_workloads(
    workers: Sequence[Worker],
    material: Material,
    folder: Path,
    timing: tuple[int, str],
    console: Console,
) -> Iterator[tuple[CaseResult, list[Unable]]]:
    """Asks every worker for every workload, compares values, then times them turn by turn.

    Args:
        workers: Prepared.
        material: Sizes.
        folder: For values; it is written to.
        timing: Rounds, and the clock.
        console: Shows which workload is running.

    Yields:
        tuple[CaseResult, list[Unable]]: What was found, and who could not do it.
    """
    for work in workloads(material):
        console.print(f"{work.group}: {work.name}", highlight=False)
        values, unable = _values(work, workers, folder)
        able = [worker for worker in workers if worker.name in values]
        case = _case(work, able, values, timing)
        yield _against_fastest(measure_case(case, timing[0]), case, work), unable


def _values(
    work: Workload, workers: Sequence[Worker], folder: Path
) -> tuple[dict[str, Path | None], list[Unable]]:
    """Runs a workload once with everybody; these runs also warm up."""
    values: dict[str, Path | None] = {}
    unable = []
    for worker in workers:
        # Nothing is captured without a hook, and what is generated is not steered.
        kept = None if worker.name == BARE else folder / f"{worker.name}.safetensors"
        keep = {} if kept is None else {"keep": str(kept)}
        try:
            worker.ask(work.verb, **work.arguments, **keep)
            values[worker.name] = kept
        except WorkerError as error:
            unable.append(Unable(f"{work.group}: {work.name}", worker.name, str(error)))
    if PLAIN not in values:
        raise ConfigError(f"{PLAIN} could not be measured: see {unable}")
    return values, unable


def _case(
    work: Workload,
    workers: Sequence[Worker],
    values: dict[str, Path | None],
    timing: tuple[int, str],
) -> Case:
    expected = _read(values[PLAIN])
    checks = [
        # Compared now: the next workload writes to the same files.
        Check(f"{name} = {PLAIN}", partial(float, _distance(_read(path), expected)), work.tolerance)
        for name, path in values.items()
        if name not in (PLAIN, BARE)
    ]
    return Case(
        work.group,
        work.name,
        {worker.name: _cost(worker, work, timing[1]) for worker in workers},
        tuple(Pair(worker.name, PLAIN) for worker in workers if worker.name != PLAIN),
        tuple(checks),
        returns_cost=True,
    )


def _cost(worker: Worker, work: Workload, clock: str) -> Callable[[], float]:
    return lambda: float(worker.ask(work.verb, **work.arguments)[clock])


def _read(path: Path | None) -> torch.Tensor:
    if path is None:
        raise ConfigError("no values were kept to compare")
    (value,) = load_file(path).values()
    return value


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float((one.double() - other.double()).abs().max())


def _against_fastest(found: CaseResult, case: Case, work: Workload) -> CaseResult:
    """Adds the ratio of isthmus to the peer that took least time."""
    peers = {peer.name for peer in PEERS} & set(found.costs)
    if not peers or ISTHMUS.name not in found.costs:
        return found
    fastest = min(peers, key=lambda name: median(found.costs[name]))
    pair = Pair(ISTHMUS.name, fastest, work.limit)
    return replace(found, comparisons=(*found.comparisons, compare(case, pair, found.costs)))


def measure_imports(environments: Sequence[Environment], n_rounds: int) -> CaseResult:
    """Times new interpreters that import what capturing needs, against those that import torch.

    Args:
        environments: Built ones.
        n_rounds: Rounds.

    Returns:
        What was found.
    """
    codes = [(one, one.import_code, one.name) for one in environments]
    codes += [(one, "import torch", f"import torch, {one.name}") for one in environments]
    case = Case(
        "Import",
        "new interpreter, what capturing needs",
        {name: partial(_import, one, code) for one, code, name in codes},
        tuple(Pair(one.name, f"import torch, {one.name}") for one in environments),
    )
    return measure_case(case, n_rounds, processor_seconds)


def _import(environment: Environment, code: str) -> None:
    subprocess.run([str(environment.python), "-c", code], check=False, capture_output=True, cwd="/")
