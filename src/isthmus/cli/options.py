"""Options that several verbs share, so that they read alike everywhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from isthmus.core.options import TaskName

Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Computation type; auto is the stored one."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ..., or map:auto.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Site = Annotated[
    str | None, typer.Option(help="Site: resid_post[3], 3 or 0.6; needed if there are several.")
]
Sites = Annotated[str, typer.Option(help="all, or sites such as 'resid_post[3],0.6'.")]
Edit = Annotated[
    Literal["add", "add_keeping_norm", "ablate", "set_coordinate", "replace"],
    typer.Option(help="What is done."),
]
Positions = Annotated[
    str | None,
    typer.Option(help="trigger, last:K, prompt, generated or all; the direction's own if omitted."),
]
Strength = Annotated[float, typer.Option(help="In units of the direction's norm.")]
Questions = Annotated[
    Path | None, typer.Option(help="JSONL with prompt and answer; the organisms' world if omitted.")
]
Task = Annotated[
    TaskName,
    typer.Option(help="What is measured; tasks bring their own prompts."),
]
Judge = Annotated[Literal["rules", "endpoint", "guard"], typer.Option(help="Who judges refusals.")]
JudgeSettings = Annotated[
    Path | None, typer.Option(help="YAML file with the settings of the endpoint or guard.")
]
Triggers = Annotated[
    tuple[str, str] | None,
    typer.Option(help="Positive and negative trigger, for positions trigger."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts per forward pass.")]

EngineName = Annotated[
    Literal["local", "ray"], typer.Option(help="Who computes: this machine, or a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="With --engine ray: of a running cluster, or auto; one is started if omitted."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="With --engine ray: workers at once.")]


def as_site(written: str | None) -> str | None:
    """Returns a site as written, or None when it was left out or blank."""
    return written if written and written.strip() else None
