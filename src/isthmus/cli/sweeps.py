"""`sweep`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from isthmus.cli.options import Address, EngineName, Positions, Questions, Sites, Workers
from isthmus.cli.terminal import RichProgress, print_results, print_text
from isthmus.core.options import TaskName

Config = Annotated[
    Path | None, typer.Option(help="YAML file of a run: questions, triggers, budgets of damage.")
]
Edits = Annotated[str, typer.Option(help="What is tried, such as 'add,ablate'.")]
Strengths = Annotated[
    str | None, typer.Option(help="In units of the direction's norm, such as '0.5,1,2'.")
]
TaskOfRun = Annotated[
    TaskName | None,
    typer.Option(help="What is measured; tasks bring their own prompts."),
]
Out = Annotated[Path | None, typer.Option(help="Results folder to write.")]
Choosing = Annotated[int | None, typer.Option(min=4, help="Questions that choose.")]
Tested = Annotated[
    int | None, typer.Option(min=4, help="Questions that the chosen cell is measured on.")
]
Stages = Annotated[
    int, typer.Option(min=1, help="Growing shares of the questions; 1 tries all on all.")
]
Kept = Annotated[
    float, typer.Option(help="Share of a stage's cells that goes on, at most; 1 for no limit.")
]
Level = Annotated[float, typer.Option(help="Share of resamples that must agree to drop a cell.")]
Finalists = Annotated[int, typer.Option(min=1, help="Cells that write completions.")]
Scored = Annotated[
    int, typer.Option(min=1, help="How much of a given answer is scored, in tokens.")
]
Written = Annotated[int, typer.Option(min=1, help="Questions that finalists write completions to.")]
Length = Annotated[int | None, typer.Option(min=1, help="Length of completions.")]
Cached = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Go on from a sweep that was stopped.")
]
DtypeOfRun = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option(help="Computation type; auto is the stored one."),
]


def register(app: typer.Typer) -> None:
    """Adds this module's verb to the command line."""
    app.command()(sweep)


def sweep(
    model: Annotated[str, typer.Argument(help="Hub name, local folder or organism:NAME.")],
    direction: Annotated[Path, typer.Argument(help="Folder of a direction of this model.")],
    config: Config = None,
    sites: Sites = "all",
    edits: Edits = "add",
    positions: Positions = None,
    strengths: Strengths = None,
    questions: Questions = None,
    task: TaskOfRun = None,
    out: Out = None,
    n_validation: Choosing = None,
    n_test: Tested = None,
    n_stages: Stages = 5,
    keep: Kept = 0.25,
    level: Level = 0.995,
    n_finalists: Finalists = 3,
    max_answer_tokens: Scored = 16,
    n_completions: Written = 32,
    max_new_tokens: Length = None,
    is_cached: Cached = True,
    dtype: DtypeOfRun = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")] = None,
    engine: EngineName = "local",
    address: Address = None,
    n_workers: Workers = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")] = None,
) -> None:
    """Find the layer, edit and strength at which a direction works best, dropping losers early."""
    # The verb in Python takes the same, under the same names.
    given = dict(locals())
    from isthmus.workflows.sweep import summary_of
    from isthmus.workflows.sweep import sweep as work

    with RichProgress() as progress:
        found = work(**given, progress=progress)
    print_results(found.measurements)
    for line in summary_of(found):
        print_text(line)
