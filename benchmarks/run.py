"""Measures what isthmus costs on this machine: `python benchmarks/run.py --help`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.capture_cases import capture_cases
from benchmarks.import_cases import import_cases
from benchmarks.map_cases import map_cases
from benchmarks.networks import FULL, QUICK, Scale
from benchmarks.ray_cases import ray_cases
from benchmarks.results import (
    CaseResult,
    conditions,
    failed_checks,
    measure_case,
    table_of,
    write_results,
    write_table,
)
from benchmarks.row_cases import continuous_cases, row_cases
from benchmarks.steering_cases import generation_cases, scoring_cases
from benchmarks.timing import Case, Variant, processor_seconds, wall_seconds
from rich.console import Console

from isthmus.core.errors import IsthmusError

ROOT = Path(__file__).resolve().parents[1]
CASES: Mapping[str, Callable[[Scale, torch.Generator], Iterator[Case]]] = {
    "capture": capture_cases,
    "generation": generation_cases,
    "rows": row_cases,
    "continuous": continuous_cases,
    "scoring": scoring_cases,
    "maps": map_cases,
    "imports": lambda _scale, _generator: import_cases(),
    "ray": lambda scale, _generator: ray_cases(scale),
}
GROUPS = tuple(CASES)
OUT = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
CLOCKS: Mapping[str, Callable[[Variant], float]] = {
    "wall": wall_seconds,
    "processor": processor_seconds,
}


def cases(scale: Scale, groups: Sequence[str], seed: int) -> Iterator[Case]:
    """Yields the cases of some groups, each group drawn from the same seed.

    Args:
        scale: Sizes.
        groups: Some of `GROUPS`.
        seed: Decides weights, prompts and pairs.

    Yields:
        Case: Ready to be run.
    """
    for group in groups:
        yield from CASES[group](scale, torch.Generator().manual_seed(seed))


def measure(
    every: Iterator[Case],
    n_repeats: int,
    clock: Callable[[Variant], float],
    console: Console,
    keep: Callable[[list[CaseResult]], None],
) -> list[CaseResult]:
    """Checks and times cases.

    Args:
        every: What to run.
        n_repeats: Rounds, unless a case has its own number.
        clock: What a run is timed by.
        console: Shows which case is running.
        keep: Given what was found so far after every case: a run that is stopped loses one.

    Returns:
        What was found, case by case.
    """
    found = []
    with console.status("building models") as status:
        for case in every:
            status.update(f"{case.group}: {case.name}")
            found.append(measure_case(case, n_repeats, clock))
            keep(found)
            console.print(f"done: {case.group}: {case.name}", highlight=False)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks, writes the results and returns the exit code.

    Args:
        arguments: Command line; that of the process when not given.

    Returns:
        0, or 1 when values that must agree do not or nothing could be measured.
    """
    given = _parse(arguments)
    console = Console(stderr=True)
    # One thread stays quick where other programs keep the machine busy: none waits for another.
    threads = given.threads or (1 if given.quick else 2)
    torch.set_num_threads(threads)
    scale = QUICK if given.quick else FULL
    if given.long:
        scale = replace(
            scale, n_streamed=(100_000, 1_000_000), n_streamed_memory=(102_400, 1_024_000)
        )
    n_repeats = given.repeats or scale.n_repeats
    groups = tuple(group for group in GROUPS if group in (given.only or GROUPS))
    where = conditions(
        {"scale": scale.name, "threads": threads, "clock": given.clock, "seed": given.seed}
    )
    try:
        every = cases(scale, groups, given.seed)
        name = given.name or f"{scale.name}-cpu"
        found = measure(
            every,
            n_repeats,
            CLOCKS[given.clock],
            console,
            lambda so_far: write_results(given.out, name, so_far, where),
        )
        if scale.name == FULL.name and groups == GROUPS and given.out == OUT:
            write_table(PAGE, found, where)
    except IsthmusError as error:
        console.print(f"error: {error}", highlight=False)
        return 1
    print(table_of(found, where))
    for failed in failed_checks(found):
        console.print(f"not equal: {failed.case}: {failed.what}: {failed.difference:g}")
    return 1 if failed_checks(found) else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures isthmus against bare PyTorch, turn by turn, as ratios. A full run "
        "that writes to the default folder also rewrites the table of docs/benchmarks.md."
    )
    parser.add_argument("--quick", action="store_true", help="small models, five repeats")
    parser.add_argument(
        "--long", action="store_true", help="streams of a million pairs; half an hour for maps"
    )
    parser.add_argument("--threads", type=int, help="of PyTorch (default: 2, quick 1)")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="processor, with --threads 1, where other programs keep the machine busy",
    )
    parser.add_argument("--repeats", type=int, help="rounds per case (default: 15, quick 5)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="leave out the other groups")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for JSON and figure")
    parser.add_argument("--name", help="of both files (default: full-cpu or quick-cpu)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
