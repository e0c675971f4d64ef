"""`capture`, `learn-direction`, `learn-map`, `transfer`, `inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isthmus.cli.options import (
    Address,
    BatchSize,
    Device,
    Dtype,
    EngineName,
    Out,
    Seed,
    Sites,
    Triggers,
    Workers,
)
from isthmus.cli.probes import PositiveShare, Unlabelled, print_probe
from isthmus.cli.terminal import RichProgress, print_text

if TYPE_CHECKING:
    from isthmus.maps.files import FittedMap

MapName = Literal[
    "ridge",
    "ridge_one_layer",
    "ridge_gcv",
    "ridge_standardised",
    "ridge_clipped",
    "ridge_trimmed",
    "ridge_huber",
    "ridge_contrast",
    "procrustes",
    "procrustes_whitened",
    "reduced_rank",
    "pca_whitened",
    "bidirectional",
    "kernel_ridge",
    "autoencoder",
    "autoencoder_well_trained",
    "autoencoder_residual",
    "sgd_affine",
    "relative",
    "unembedding_rows",
    "identity",
    "auto",
]
PairingName = Annotated[
    Literal["character_end", "chunk_boundary", "span_pool", "index", "last"],
    typer.Option(help="How tokens are paired."),
]
DownstreamSteps = Annotated[
    int, typer.Option(min=0, help="Steps of fine-tuning on what the target then predicts.")
]
Contrasts = Annotated[
    Path | None,
    typer.Option(help="Contrast prompts for ridge_contrast, as learn-direction takes them."),
]
PairStore = Annotated[
    Path | None,
    typer.Option(help="Store of pairs that is read, or captured first where it is not there."),
]
Model = Annotated[str, typer.Argument(help="Hub name, local folder or organism:NAME.")]


def register(app: typer.Typer) -> None:
    """Adds this module's verbs to the command line."""
    app.command()(capture)
    app.command("learn-direction")(learn_direction)
    app.command("learn-map")(learn_map)
    app.command()(transfer)
    app.command()(inspect)


def capture(
    model: Model,
    prompts: Annotated[Path, typer.Argument(help="JSONL with prompt, or one prompt per line.")],
    out: Out,
    sites: Sites = "all",
    target: Annotated[
        str | None, typer.Option(help="Second model: pairs of both are kept.")
    ] = None,
    target_sites: Annotated[str, typer.Option(help="Sites of the target, as for --sites.")] = "all",
    pairing: PairingName = "character_end",
    storage_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Type in the files.")
    ] = "float32",
    rows_per_shard: Annotated[int, typer.Option(help="Most rows of one file.")] = 16384,
    append: Annotated[
        bool, typer.Option("--append", help="Add prompts that follow those of a finished store.")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 64,
    engine: EngineName = "local",
    address: Address = None,
    n_workers: Workers = None,
) -> None:
    """Keep activations over a file of prompts, of one model or in pairs; goes on where it ended."""
    from isthmus.workflows.capture import capture as work

    with RichProgress() as progress:
        folder = work(
            model,
            prompts,
            out=out,
            sites=sites,
            target=target,
            target_sites=target_sites,
            pairing=pairing,
            storage_dtype=storage_dtype,
            rows_per_shard=rows_per_shard,
            append=append,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            engine=engine,
            address=address,
            n_workers=n_workers,
            progress=progress,
        )
    print_text(f"activations: {folder}")


def learn_direction(
    model: Model,
    prompts: Annotated[
        Path, typer.Argument(help="JSONL with positive and negative, or prompt and label.")
    ],
    out: Out,
    sites: Sites = "all",
    method: Annotated[
        Literal["mean_difference", "pca", "probe"], typer.Option(help="How it is learned.")
    ] = "mean_difference",
    positions: Annotated[
        str, typer.Option(help="Tokens that are read: trigger, last:K or prompt.")
    ] = "last:3",
    pooled: Annotated[
        bool, typer.Option("--pooled", help="One vector for all positions of the span.")
    ] = False,
    triggers: Triggers = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 64,
) -> None:
    """Learn the direction from negative to positive prompts."""
    from isthmus.workflows.learn_direction import learn_direction as work

    with RichProgress() as progress:
        direction = work(
            model,
            prompts,
            out=out,
            sites=sites,
            method=method,
            positions=positions,
            pooled=pooled,
            triggers=triggers,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    norms = {site: round(float(norm.mean()), 3) for site, norm in direction.norms.items()}
    print_text(f"direction: {out}")
    for site, norm in norms.items():
        print_text(f"  {site}  mean norm {norm}")


def learn_map(
    source: Model,
    target: Model,
    texts: Annotated[Path, typer.Argument(help="JSONL with prompt, or one text per line.")],
    target_site: Annotated[
        str, typer.Option(help="Where the map leads: resid_post[3], 3, 0.6; several: 1,2,3 or all.")
    ],
    out: Out,
    source_sites: Sites = "all",
    map: Annotated[  # noqa: A002
        MapName,
        typer.Option(help="Which map; auto chooses by held-out score."),
    ] = "ridge",
    pairing: PairingName = "character_end",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    downstream_steps: DownstreamSteps = 0,
    contrasts: Contrasts = None,
    store: PairStore = None,
) -> None:
    """Fit a map between two models' activation spaces and score it on held-out texts."""
    from isthmus.workflows.learn_map import learn_map as work

    with RichProgress() as progress:
        fitted = work(
            source,
            target,
            texts,
            target_site=target_site,
            out=out,
            source_sites=source_sites,
            map=map,
            pairing=pairing,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            seed=seed,
            downstream_steps=downstream_steps,
            contrasts=contrasts,
            store=store,
            progress=progress,
        )
    ends = (fitted.source_sites, fitted.target_sites)
    reads, reached = (", ".join(str(site) for site in sites) for sites in ends)
    print_text(f"map: {out}, from {reads} to {reached}")
    _print_quality(fitted)


def _print_quality(fitted: "FittedMap") -> None:
    quality = fitted.quality
    middle = quality.r2_median_coordinate
    print_text(
        f"  held-out R2 {quality.r2_held_out:.4f}"
        + ("" if middle is None else f", of the median coordinate {middle:.4f}")
        + f" (n = {quality.n_held_out} pairs, fitted on {quality.n_train})"
    )
    if told := fitted.provenance.get("downstream"):
        print_text(
            f"  target on mapped states: KL {told['kl_before']:.4f} before, "
            f"{told['kl_after']:.4f} after fine-tuning, nats per token"
        )
    for score in fitted.provenance.get("candidates", ()):
        print_text(
            f"  {score['name']}: R2 {score['r2']:.4f} ± {score['standard_error']:.4f}, "
            f"{score['verdict']}"
        )
    for name, reason in fitted.provenance.get("not_fitted", {}).items():
        print_text(f"  {name}: not fitted, {reason}")


def transfer(
    direction: Annotated[
        Path, typer.Argument(help="Folder of a direction, a subspace or a probe.")
    ],
    map: Annotated[  # noqa: A002
        list[Path], typer.Argument(help="Folder of a map; several in the order of the way.")
    ],
    out: Out,
    rule: Annotated[
        Literal["auto", "linear", "difference", "map_of_vector"],
        typer.Option(help="How a direction goes through the map."),
    ] = "auto",
    unlabelled: Unlabelled = None,
    positive_share: PositiveShare = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Carry a direction, a subspace or a probe through a map, or through several in turn."""
    from isthmus.directions.model_probe import ModelProbe
    from isthmus.workflows.transfer import transfer as work

    carried = work(
        direction,
        map,
        out=out,
        rule=rule,
        unlabelled=unlabelled,
        positive_share=positive_share,
        dtype=dtype,
        device=device,
    )
    if isinstance(carried, ModelProbe):
        print_probe(carried, out)
        return
    sites = ", ".join(str(site) for site in carried.sites)
    print_text(f"{carried.WHAT}: {out}\n  at {sites} of {carried.model}")


def inspect(
    path: Annotated[
        str, typer.Argument(help="Artifact, store, results folder, model or organism:NAME.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every shard of a store, too.")
    ] = False,
) -> None:
    """Show what an artifact, a store, a run or a model holds, and check that it is whole."""
    import json

    from isthmus.workflows.inspect import inspect as work

    print_text(json.dumps(work(path, verify=verify), indent=2, ensure_ascii=False, default=str))
