"""`learn-subspace`."""

from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli.artifacts import Model
from isthmus.cli.options import BatchSize, Device, Dtype, Out, Sites, Triggers
from isthmus.cli.terminal import RichProgress, print_text


def register(app: typer.Typer) -> None:
    """Adds this module's verb to the command line."""
    app.command("learn-subspace")(learn_subspace)


def learn_subspace(
    model: Model,
    prompts: Annotated[
        Path, typer.Argument(help="JSONL of pairs: positive and negative on every line.")
    ],
    out: Out,
    rank: Annotated[int, typer.Option(min=1, help="How many dimensions.")] = 2,
    sites: Sites = "all",
    positions: Annotated[
        str, typer.Option(help="Tokens that are read: trigger, last:K or prompt.")
    ] = "last:3",
    pooled: Annotated[
        bool, typer.Option("--pooled", help="Classes lie at one place for all positions.")
    ] = False,
    triggers: Triggers = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 64,
) -> None:
    """Learn the subspace in which paired prompts differ, the mean difference first."""
    from isthmus.workflows.learn_subspace import learn_subspace as work

    with RichProgress() as progress:
        subspace = work(
            model,
            prompts,
            rank=rank,
            out=out,
            sites=sites,
            positions=positions,
            pooled=pooled,
            triggers=triggers,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    print_text(f"subspace: {out}")
    for site, one in subspace.by_site.items():
        shares = ", ".join(f"{share:.3f}" for share in one.shares.tolist())
        print_text(f"  {site}  shares of the contrast {shares}")
