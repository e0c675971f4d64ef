"""`capture`: reads a model, or two over the same prompts, and keeps the activations in a store."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from isthmus.core.errors import ConfigError
from isthmus.core.options import require_word
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import GivenSite, GivenSites, Site
from isthmus.data.prompts import Question, stream_questions
from isthmus.data.store_format import ROWS_PER_SHARD, Role, StorageDtype
from isthmus.workflows.config import Dtype, Pairing
from isthmus.workflows.engines.choosing import EngineName, engine_named
from isthmus.workflows.engines.jobs import Engine
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.store_filling import fill_store
from isthmus.workflows.store_shards import StoreSettings, fill_store_by


def capture(
    model: str | Path,
    prompts: str | Path | Iterable[str | Question],
    *,
    out: str | Path,
    sites: GivenSites = "all",
    target: str | Path | None = None,
    target_sites: GivenSites = "all",
    pairing: Pairing = "character_end",
    storage_dtype: StorageDtype = "float32",
    rows_per_shard: int = ROWS_PER_SHARD,
    append: bool = False,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    engine: EngineName | Engine = "local",
    address: str | None = None,
    n_workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the activations of every token of every prompt at the given sites.

    With a target the store holds pairs: of tokens of both models that belong together, the
    activations of both. A store that was not finished is gone on with; of one that is finished with
    these prompts nothing is read again.

    Args:
        model: Hub name, local folder or `organism:NAME`; with a target it is the source.
        prompts: JSONL with `prompt` (and `answer`, which is then read too), or one prompt per line;
            in Python also a stream of prompts.
        out: Folder of the store.
        sites: `all`, or sites such as `resid_post[3]`, `3`, `0.6`.
        target: Second model, for pairs.
        target_sites: Sites of the target; only with one.
        pairing: How tokens are paired, as for `learn_map`; only with a target.
        storage_dtype: Type of the activations in the files.
        rows_per_shard: Most rows of a file; one that was not finished is lost when a run is killed.
        append: Whether prompts that follow those of a finished store are added to it.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Prompts per forward pass.
        engine: Who captures: `local` is this process, `ray` workers of a Ray cluster, each with one
            thread and models of its own.
        address: With `ray`: of a running cluster, or `auto`; one is started here when not given.
        n_workers: With `ray`: how many workers.
        progress: Who shows progress.

    Returns:
        The folder.

    Raises:
        IsthmusError: If a model, a site, the prompts or the place cannot be used.
    """
    _require_asked(target, target_sites, pairing)
    chosen = engine_named(engine, address, n_workers)
    n_texts = None
    if isinstance(prompts, str | Path):
        # Damaged rows are found before hours of reading.
        n_texts = sum(1 for _ in stream_questions(Path(prompts)))
    names: dict[Role, str] = {"source": str(model)}
    if target is not None:
        names["target"] = str(target)
    settings = StoreSettings(
        names,
        {"source": _listed(sites), "target": _listed(target_sites)},
        pairing,
        dtype,
        device,
        batch_size,
        {"storage_dtype": storage_dtype, "rows_per_shard": rows_per_shard},
    )
    shown, asked = progress or SilentProgress(), _questions(prompts)
    if not isinstance(chosen, LocalEngine):
        store = fill_store_by(chosen, out, settings, asked, append=append, progress=shown)
        return store.folder
    models = settings.load()
    store = fill_store(
        out,
        settings.spec(models),
        models,
        asked,
        batch_size=batch_size,
        append=append,
        n_texts=n_texts,
        progress=shown,
    )
    return store.folder


def _require_asked(target: str | Path | None, target_sites: GivenSites, pairing: str) -> None:
    """Refuses what only pairs have where there is no second model."""
    require_word("pairing", pairing, get_args(Pairing))
    given = {"target_sites": target_sites != "all", "pairing": pairing != "character_end"}
    if target is None and any(given.values()):
        names = " and ".join(name for name, is_given in given.items() if is_given)
        raise ConfigError(
            f"{names} given, but no target: one model's activations are not paired. Name the "
            "second model (target), or leave this out"
        )


def _questions(prompts: str | Path | Iterable[str | Question]) -> Iterator[Question]:
    if isinstance(prompts, str | Path):
        yield from stream_questions(Path(prompts))
        return
    for one in prompts:
        yield Question(one) if isinstance(one, str) else one


def _listed(given: GivenSites) -> str | tuple[GivenSite, ...]:
    if isinstance(given, Site | int | float):
        return (given,)
    return given if isinstance(given, str) else tuple(given)
