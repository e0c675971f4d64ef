"""`demo`, `run`, `evaluate`, `report`, `reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.options import (
    Address,
    Device,
    Dtype,
    Edit,
    EngineName,
    Judge,
    JudgeSettings,
    Positions,
    Questions,
    Seed,
    Site,
    Strength,
    Task,
    Workers,
    as_site,
)
from isthmus.cli.probes import Gate, print_open_rates
from isthmus.cli.terminal import RichProgress, print_results, print_text

Cached = Annotated[
    bool,
    typer.Option("--cache/--no-cache", help="Use crossings that were finished before."),
]
AnySeed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Seed of everything random; when not given, that of each configuration, else 0.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds this module's verbs to the command line."""
    app.command()(demo)
    app.command()(run)
    app.command()(evaluate)
    app.command()(report)
    app.command()(reproduce)


def demo(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("runs/demo"),
    is_cached: Cached = True,
) -> None:
    """Remove a backdoor found in one small model from three others, and report how it went."""
    from isthmus.workflows.run import demo as work

    with RichProgress() as progress:
        result = work(out=out, is_cached=is_cached, progress=progress)
    print_results(result.measurements)
    print_text(f"report: {result.report}")


def run(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/configuration.md.")],
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("runs/run"),
    is_cached: Cached = True,
    engine: EngineName = "local",
    address: Address = None,
    n_workers: Workers = None,
) -> None:
    """Carry out a configuration: directions, maps, transfer, controls, report."""
    from isthmus.workflows.run import run as work

    with RichProgress() as progress:
        result = work(
            config,
            out=out,
            is_cached=is_cached,
            engine=engine,
            address=address,
            n_workers=n_workers,
            progress=progress,
        )
    print_results(result.measurements)
    print_text(f"report: {result.report}")


def evaluate(
    model: Annotated[str, typer.Argument(help="Hub name, local folder or organism:NAME.")],
    direction: Annotated[Path, typer.Argument(help="Folder of a direction of this model.")],
    out: Annotated[Path | None, typer.Option(help="Results folder to write.")] = None,
    certify: Annotated[
        Path | None,
        typer.Option(help="Direction to write, with what was measured in its certificate."),
    ] = None,
    gate: Gate = None,
    site: Site = None,
    edit: Edit = "add",
    positions: Positions = None,
    strength: Strength = 1.0,
    questions: Questions = None,
    task: Task = "backdoor",
    judge: Judge = "rules",
    judge_settings: JudgeSettings = None,
    n_test: Annotated[int, typer.Option(min=4, help="Questions that are measured.")] = 256,
    n_random: Annotated[int, typer.Option(min=1, help="Draws of the random control.")] = 3,
    dtype: Dtype = "auto",
    device: Device = "auto",
    engine: EngineName = "local",
    address: Address = None,
    n_workers: Workers = None,
    seed: Seed = 0,
) -> None:
    """Measure one direction in one model, beside random directions, noise and the prompt alone.

    With --gate every edit is measured without the gate and behind it, and the direction behind
    random gates.
    """
    from isthmus.workflows.evaluate import evaluate as work

    with RichProgress() as progress:
        found = work(
            model,
            direction,
            out=out,
            certify=certify,
            gate=gate,
            site=as_site(site),
            edit=edit,
            positions=positions,
            strength=strength,
            questions=questions,
            task=task,
            judge=judge,
            judge_settings=judge_settings,
            n_test=n_test,
            n_random=n_random,
            dtype=dtype,
            device=device,
            engine=engine,
            address=address,
            n_workers=n_workers,
            seed=seed,
            progress=progress,
        )
    print_results(found)
    print_open_rates(found)


def report(
    run: Annotated[Path, typer.Argument(help="Results folder of a run.")],
) -> None:
    """Write the report of a run again from its files."""
    from isthmus.workflows.report import report as work

    print_text(f"report: {work(run)}")


def reproduce(
    what: Annotated[str, typer.Argument(help="What to reproduce: paper or matrix.")] = "paper",
    out: Annotated[
        Path | None, typer.Option(help="Results folder; runs/WHAT when not given.")
    ] = None,
    is_quick: Annotated[
        bool, typer.Option("--quick/--full", help="Fewer questions and maps.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="A part; may be given again.")] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="YAML file of a run, whose models take the place of the organisms; may be given "
            "again."
        ),
    ] = None,
    is_cached: Cached = True,
    n_processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Parts at once; as many as there are processors when not given, one with a GPU.",
        ),
    ] = None,
    engine: EngineName = "local",
    address: Address = None,
    n_workers: Workers = None,
    seed: AnySeed = None,
) -> None:
    """Lay the figures of arXiv 2503.04429 beside our own numbers; or measure the transfer matrix.

    The matrix is every ordered pair of six organisms; two do not come with the package and are
    trained first (with --quick they are left out). When a part fails the others go on, and the
    exit code is 11.
    """
    from isthmus.studies.reproduce import reproduce as work

    with RichProgress() as progress:
        result = work(
            what,
            out=out,
            is_quick=is_quick,
            only=only,
            config=config,
            is_cached=is_cached,
            n_processes=n_processes,
            engine=engine,
            address=address,
            n_workers=n_workers,
            seed=seed,
            progress=progress,
        )
    for part in result.parts:
        state = f"missing: {part.problem}" if part.problem else f"{len(part.measurements)} numbers"
        print_text(f"{part.name}: {state}")
    print_text(f"report: {result.report}")
    result.require_complete()
