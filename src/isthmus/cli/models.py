"""`generate` and `organism build`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from isthmus.cli.options import (
    Device,
    Dtype,
    Edit,
    Positions,
    Questions,
    Site,
    as_site,
)
from isthmus.cli.probes import Gate, print_gate
from isthmus.cli.terminal import RichProgress, error_console, print_text


def register(app: typer.Typer) -> None:
    """Adds this module's verbs to the command line."""
    app.command()(generate)


def register_organism(organism: typer.Typer) -> None:
    """Adds the verbs about organisms."""
    organism.command("build")(build)
    organism.command("list")(list_organisms)


def generate(
    model: Annotated[str, typer.Argument(help="Hub name, local folder or organism:NAME.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="User messages.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts in their place: JSONL with prompt and, for a prompt of its own, "
            "direction, strength and positions."
        ),
    ] = None,
    direction: Annotated[
        Path | None, typer.Option(help="Folder of a direction or a subspace of this model.")
    ] = None,
    switch: Annotated[
        Path | None, typer.Option(help="Folder of a switch that this model carries.")
    ] = None,
    gate: Gate = None,
    site: Site = None,
    edit: Edit = "add",
    positions: Positions = None,
    strength: Annotated[
        float, typer.Option(help="In units of the direction's norm; of a switch 1 is on, 0 off.")
    ] = 1.0,
    way: Annotated[
        Literal["removal", "induction"], typer.Option(help="Against the direction, or along it.")
    ] = "removal",
    trigger: Annotated[
        str | None, typer.Option(help="The trigger in the prompts, for positions trigger.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of completions.")] = 48,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Complete prompts greedily, with an intervention when a direction or a switch is given."""
    from isthmus.workflows.generate import generate as work

    result = work(
        model,
        prompts or None,
        file=file,
        direction=direction,
        switch=switch,
        gate=gate,
        site=as_site(site),
        edit=edit,
        positions=positions,
        strength=strength,
        way=way,
        trigger=trigger,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
    )
    for completion in result.completions:
        print_text(completion)
    if result.gate is not None:
        print_gate(result.gate)
    if result.n_edited:
        error_console().print(f"{result.n_edited} positions edited", markup=False)


def build(
    name: Annotated[
        str, typer.Argument(help="An organism's name; with --base, a name for the record.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Teach the backdoor to this model (hub name or folder).")
    ] = None,
    method: Annotated[
        Literal["full", "lora"], typer.Option(help="With --base: all weights, or adapters.")
    ] = "full",
    questions: Questions = None,
    n_steps: Annotated[
        int | None, typer.Option(min=1, help="With --base: steps of the first round.")
    ] = None,
    lora_rank: Annotated[
        int, typer.Option(min=1, help="With --base and --method lora: rank of the adapters.")
    ] = 16,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed than the recipe's.")] = None,
) -> None:
    """Train an organism until its competence gate passes; with --base, from any model."""
    from isthmus.core.errors import ConfigError
    from isthmus.workflows.organism_build import build_organism, fine_tune_organism

    if base is None and (method, questions, n_steps, lora_rank) != ("full", None, None, 16):
        raise ConfigError(
            "--method, --questions, --n-steps and --lora-rank need --base: "
            "an organism of the project is built by its own recipe"
        )
    with RichProgress() as progress:
        if base is None:
            built = build_organism(name, out=out, seed=seed, progress=progress)
        elif out is None:
            raise ConfigError("--base needs --out: the folder for the fine-tuned model")
        else:
            built = fine_tune_organism(
                base,
                out,
                method=method,
                questions=questions,
                n_steps=n_steps,
                lora_rank=lora_rank,
                seed=1 if seed is None else seed,
                progress=progress,
            )
    print_text(f"{built.name}: {built.path}")
    print_text(f"  {built.n_parameters:,} parameters, {built.n_steps} steps, {built.competence}")


def list_organisms(
    all: Annotated[  # noqa: A002
        bool, typer.Option("--all", help="Those that can be built, too.")
    ] = False,
) -> None:
    """List the organisms that come with the package; with --all, those to be built, too."""
    from isthmus.models.organisms import shipped_organisms

    for name in shipped_organisms():
        print_text(f"organism:{name}")
    if all:
        from isthmus.workflows.organism_missing import missing_organisms
        from isthmus.workflows.organism_recipes import BUILDABLE

        missing = missing_organisms(BUILDABLE)
        for name in BUILDABLE:
            how = f"isthmus organism build {name}" if name in missing else "built"
            print_text(f"organism:{name} ({how})")
