"""`capture`: reads a model, or two over the same prompts, and keeps the activations in a store."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.data.prompts import Question, stream_questions
from isthmus.data.store_format import ROWS_PER_SHARD, Role, StorageDtype
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import Dtype, Pairing
from isthmus.workflows.store_filling import fill_store, spec_of_store


def capture(
    model: str,
    prompts: str | Path | Iterable[str | Question],
    *,
    out: str | Path,
    sites: str | tuple[Site | str | int | float, ...] = "all",
    target: str | None = None,
    target_sites: str | tuple[Site | str | int | float, ...] = "all",
    pairing: Pairing = "character_end",
    storage_dtype: StorageDtype = "float32",
    rows_per_shard: int = ROWS_PER_SHARD,
    append: bool = False,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
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
        target_sites: Sites of the target.
        pairing: How tokens are paired, as for `learn_map`.
        storage_dtype: Type of the activations in the files.
        rows_per_shard: Most rows of a file; one that was not finished is lost when a run is killed.
        append: Whether prompts that follow those of a finished store are added to it.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Prompts per forward pass.
        progress: Who shows progress.

    Returns:
        The folder.

    Raises:
        IsthmusError: If a model, a site, the prompts or the place cannot be used.
    """
    n_texts = None
    if isinstance(prompts, str | Path):
        # Damaged rows are found before hours of reading.
        n_texts = sum(1 for _ in stream_questions(Path(prompts)))
    source = load_language_model(model, dtype=dtype, device=device)
    models: dict[Role, LanguageModel] = {"source": source}
    read: dict[Role, tuple[Site, ...]] = {"source": source.sites(sites)}
    if target is not None:
        models["target"] = load_language_model(target, dtype=dtype, device=device)
        read["target"] = models["target"].sites(target_sites)
    spec = spec_of_store(
        models, read, pairing=pairing, storage_dtype=storage_dtype, rows_per_shard=rows_per_shard
    )
    store = fill_store(
        out,
        spec,
        models,
        _questions(prompts),
        batch_size=batch_size,
        append=append,
        n_texts=n_texts,
        progress=progress or SilentProgress(),
    )
    return store.folder


def _questions(prompts: str | Path | Iterable[str | Question]) -> Iterator[Question]:
    if isinstance(prompts, str | Path):
        yield from stream_questions(Path(prompts))
        return
    for one in prompts:
        yield Question(one) if isinstance(one, str) else one
