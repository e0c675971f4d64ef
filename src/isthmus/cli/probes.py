"""`learn-probe`, and how probes and gates are shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.options import BatchSize, Device, Dtype, Out, Seed, Triggers
from isthmus.cli.terminal import RichProgress, error_console, print_text, value_as_text

if TYPE_CHECKING:
    from isthmus.core.gates import GateReading
    from isthmus.directions.model_probe import ModelProbe
    from isthmus.evaluation.measurements import Measurement

_MOST_SHOWN = 12

Gate = Annotated[
    Path | None,
    typer.Option(help="Folder of a probe of this model: only prompts above it are edited."),
]
Unlabelled = Annotated[
    Path | None,
    typer.Option(help="Of a probe: prompts without labels that set its threshold there."),
]
PositiveShare = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Share of them above it; as in the probe's own model if omitted."
    ),
]


def register(app: typer.Typer) -> None:
    """Adds this module's verb to the command line."""
    app.command("learn-probe")(learn_probe)


def learn_probe(
    model: Annotated[str, typer.Argument(help="Hub name, local folder or organism:NAME.")],
    prompts: Annotated[
        Path, typer.Argument(help="JSONL with positive and negative, or prompt and label.")
    ],
    out: Out,
    site: Annotated[
        str, typer.Option(help="Where it reads: resid_post[3], 3, 0.6; several: 1,2,3 or all.")
    ] = "0.5",
    positions: Annotated[
        str, typer.Option(help="Tokens that are read: last:K, trigger or prompt; their mean.")
    ] = "last:1",
    triggers: Triggers = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: BatchSize = 64,
    seed: Seed = 0,
) -> None:
    """Learn a probe that tells positive from negative prompts: a --gate of generate, evaluate."""
    from isthmus.workflows.learn_probe import learn_probe as work

    with RichProgress() as progress:
        probe = work(
            model,
            prompts,
            out=out,
            site=site,
            positions=positions,
            triggers=triggers,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    print_probe(probe, out)


def print_probe(probe: "ModelProbe", out: Path) -> None:
    """Prints where a probe reads and what is known of it."""
    print_text(f"probe: {out}\n  reads {probe.positions} at {probe.sites_as_written}")
    threshold = f"  threshold {probe.probe.threshold:.4g}"
    if rule := probe.provenance.get("rule"):
        threshold += f", {rule} through {probe.provenance['map_method']}"
    if told := probe.provenance.get("recalibrated"):
        share, n = told["positive_share"], told["n_unlabelled"]
        above = told.get("share_above", share)
        threshold += f", set so that {above:.1%} of {n} unlabelled prompts lie above it"
        # Among few prompts a share can be met to one of them; among equal scores it cannot.
        if abs(above - share) > 1 / n:
            threshold += f", instead of {share:.1%}, for their scores are equal"
    print_text(f"{threshold}\n  of {probe.model}")
    for name, number in probe.held_out.items():
        ends = "" if number.low is None else f" [{number.low:.3f}, {number.high:.3f}]"
        print_text(f"  held-out {name} {number.value:.3f}{ends} (n = {number.n})")
    if n_alike := probe.provenance.get("n_held_out_like_fitted"):
        print_text(
            f"  not counted: {n_alike} held-out prompts that show it a state it was fitted on"
        )


def print_gate(gate: "GateReading") -> None:
    """Says on standard error for how many prompts a gate was open, and how clearly."""
    console = error_console()
    console.print(f"gate open for {gate.n_open} of {len(gate.scores)} prompts", markup=False)
    told = _scores_as_text(gate.scores)
    console.print(f"  above its threshold by {told}", markup=False, soft_wrap=True)


def print_open_rates(measurements: "Sequence[Measurement]") -> None:
    """Prints for how many test prompts of every kind a gate was open, and random ones beside it."""
    rates = [m for m in measurements if m.metric == "gate_open_rate" and m.value is not None]
    for name in dict.fromkeys(m.edit for m in rates):
        print_text(f"open, {name}:")
        here = [m for m in rates if m.edit == name]
        for task in dict.fromkeys(m.task for m in here):
            draws = [m for m in here if m.task == task]
            told = ", ".join(map(value_as_text, draws))
            print_text(f"  {task.rpartition('/')[2]} prompts {told} (n = {draws[0].n})")


def _scores_as_text(scores: Sequence[float | None]) -> str:
    if len(scores) <= _MOST_SHOWN:
        return ", ".join("no trigger" if one is None else f"{one:.3g}" for one in scores)
    read = [one for one in scores if one is not None]
    return f"{min(read):.3g} to {max(read):.3g}" if read else "no trigger"
