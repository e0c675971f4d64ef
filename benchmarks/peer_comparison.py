"""Measures isthmus against other libraries: `python benchmarks/peer_comparison.py --help`."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks.peers.environments import HOME, ISTHMUS, PEERS, build, installed_size
from benchmarks.peers.material import FULL, QUICK, Material, write_material
from benchmarks.peers.report import figure_end, write_page
from benchmarks.peers.workers import Worker, WorkerError, start_worker
from benchmarks.peers.workloads import BARE, OLD, PLAIN, Unable, measure_imports, measure_workloads
from benchmarks.results import CaseResult, conditions, failed_checks, write_results
from rich.console import Console

from isthmus.core.errors import IsthmusError

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
RUNNERS = ROOT / "benchmarks" / "peers"
_N_IMPORTS = 3  # seconds each, for information


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the environments, compares the libraries and returns the exit code.

    Args:
        arguments: Command line; that of the process when not given.

    Returns:
        0, or 1 when values that must agree do not or nothing could be measured.
    """
    given = _parse(arguments)
    console = Console(stderr=True)
    material: Material = QUICK if given.quick else FULL
    unable = _build_all(console)
    if given.build_only:
        return 0
    rounds = given.repeats or material.n_repeats
    found: list[CaseResult] = []
    try:
        with TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            write_material(folder, material, given.seed)
            workers, more = _start_all(folder, unable, given.threads, stack)
            unable += more
            where = _conditions(given, material, workers, unable)
            asked = measure_workloads(workers, material, folder, (rounds, given.clock), console)
            for one, refused in asked:
                found.append(one)
                unable += refused
                _write(given.out, material, found, where)
        found.append(measure_imports(_built(unable), min(rounds, _N_IMPORTS)))
        _write(given.out, material, found, where)
    except IsthmusError as error:
        console.print(f"error: {error}", highlight=False)
        return 1
    for failed in failed_checks(found):
        console.print(f"not equal: {failed.case}: {failed.what}: {failed.difference:g}")
    return 1 if failed_checks(found) else 0


def _conditions(
    given: argparse.Namespace, material: Material, workers: list[Worker], unable: list[Unable]
) -> dict[str, Any]:
    settings = {"scale": material.name, "threads": given.threads, "clock": given.clock}
    return conditions(settings | {"seed": given.seed}) | {
        "libraries": {worker.name: worker.about for worker in workers},
        "environments": {one.name: installed_size(one) for one in _built(unable)},
        "unable": unable,
    }


def _write(
    out: Path, material: Material, found: Sequence[CaseResult], where: dict[str, Any]
) -> None:
    """Writes what was found so far, so that a run that is stopped is not lost."""
    shown = where | {"unable": [vars(one) for one in where["unable"]]}
    write_results(out, f"{material.name}-cpu", found, shown, axis_end=figure_end(found))
    if material == FULL and out == OUT:
        write_page(PAGE, found, shown)


def _build_all(console: Console) -> list[Unable]:
    unable = []
    for one in (ISTHMUS, *PEERS):
        console.print(f"environment: {one.name}", highlight=False)
        failed = build(one)
        if failed is not None:
            console.print(f"cannot be installed: {failed}", highlight=False)
            unable.append(Unable("everything", one.name, f"cannot be installed: {failed}"))
    return unable


def _built(unable: Sequence[Unable]) -> list[Any]:
    missing = {one.library for one in unable if one.workload == "everything"}
    return [one for one in (ISTHMUS, *PEERS) if one.name not in missing]


def _start_all(
    folder: Path, unable: Sequence[Unable], threads: int, stack: ExitStack
) -> tuple[list[Worker], list[Unable]]:
    """Starts a worker for every library and three for transformers alone."""
    built = {one.name: one for one in _built(unable)}
    wanted = [
        (PLAIN, ISTHMUS.name, ("run_plain.py",)),
        (BARE, ISTHMUS.name, ("run_plain.py", "bare")),
        (OLD, "steering-vectors", ("run_plain.py",)),
        *((name, name, (f"run_{name.replace('-', '_')}.py",)) for name in built),
    ]
    workers, failed = [], []
    for name, environment, (script, *options) in wanted:
        if environment not in built:
            continue
        worker = start_worker(
            name,
            built[environment].python,
            [str(RUNNERS / script), *options],
            HOME / f"{script}-{'-'.join([environment, *options])}.log",
            threads=threads,
        )
        stack.callback(worker.end)
        try:
            worker.about = worker.ask("prepare", folder=str(folder), threads=threads)
            workers.append(worker)
        except WorkerError as error:
            failed.append(Unable("all workloads", name, str(error)))
    return workers, failed


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Builds an environment for each library (needs a package index the first "
        "time), then captures and steers the same model with the same prompts, turn by turn."
    )
    parser.add_argument("--quick", action="store_true", help="a small model, three rounds")
    parser.add_argument("--build-only", action="store_true", help="environments, no measurement")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, in every process")
    parser.add_argument(
        "--clock",
        choices=("processor", "wall"),
        default="processor",
        help="what seconds are counted; processor needs one thread",
    )
    parser.add_argument("--repeats", type=int, help="rounds (default: 7, quick 3)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for JSON and figure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
