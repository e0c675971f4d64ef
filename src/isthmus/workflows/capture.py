"""`capture`: reads a model's activations over a file of prompts and keeps them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from isthmus.core.artifacts import Artifact, read_artifact, write_artifact
from isthmus.core.identity import ModelIdentity, require_same_model
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import package_versions
from isthmus.core.sites import Site
from isthmus.data.prompts import read_questions
from isthmus.workflows.capture_shards import KIND as KIND  # noqa: PLC0414 - importable from here
from isthmus.workflows.capture_shards import capture_job
from isthmus.workflows.config import Dtype
from isthmus.workflows.engines.choosing import EngineName, engine_named
from isthmus.workflows.engines.jobs import Engine, shard_folder


def capture(
    model: str,
    prompts: str | Path,
    *,
    out: str | Path,
    sites: str | tuple[Site | str | int | float, ...] = "all",
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    engine: EngineName | Engine = "local",
    address: str | None = None,
    n_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the activations of every token of every prompt at the given sites.

    The artifact holds one tensor per site, `[token d_model]` in float32 with the prompts one below
    the other, and for every token its prompt (`prompt_index`), id (`token_ids`) and the character
    where it ends in the rendered text (`ends`).

    Args:
        model: Hub name, local folder or `organism:NAME`.
        prompts: JSONL with `prompt` (and `answer`, which is then read too), or one prompt per line.
        out: Folder to write.
        sites: `all`, or sites such as `resid_post[3]`, `3`, `0.6`.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Prompts per forward pass.
        engine: Who runs the model: `local` is this process, `ray` workers of a Ray cluster, each
            with one thread and a model of its own.
        address: With `ray`: of a running cluster, or `auto`; one is started here when not given.
        n_workers: With `ray`: how many workers.
        progress: Who shows progress.

    Returns:
        The folder.

    Raises:
        IsthmusError: If the model, a site, the prompts or the place cannot be used.
    """
    settings = {"model": model, "dtype": dtype, "device": device, "batch_size": batch_size}
    job = capture_job(read_questions(Path(prompts)), settings, sites)
    chosen = engine_named(engine, address, n_workers)
    with TemporaryDirectory(prefix="isthmus-capture-") as folder:
        answers = chosen.run(job, Path(folder), progress or SilentProgress())
        read = [
            read_artifact(shard_folder(Path(folder), number), KIND)
            for number, _ in enumerate(answers)
        ]
    _write(Path(out), read)
    return Path(out)


def _write(out: Path, read: list[Artifact]) -> None:
    """Writes what was read shard by shard as one artifact."""
    models = [ModelIdentity.from_json(one.fields["model"]) for one in read]
    for other in models[1:]:
        fix = "workers found different models under one name, give all machines the same"
        require_same_model("a shard", models[0], other, fix)
    fields = {
        "model": models[0].to_json(),
        "sites": read[0].fields["sites"],
        "texts": [text for one in read for text in one.fields["texts"]],
        "versions": package_versions(),
    }
    tensors = {name: torch.cat([one.tensors[name] for one in read]) for name in read[0].tensors}
    write_artifact(out, KIND, fields, tensors)
