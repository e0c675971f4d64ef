"""Reads one model, or two over the same texts, into a store of activations.

1. `texts_to_store` renders and tokenizes a stream of questions and says which tokens become rows.
2. `plan_shards` cuts them into shards; each is a window within which batches are of like length.
3. `capture_shard` runs the models over the texts of one shard and writes its file, a batch at a
   time. It depends on nothing but the shard: any process may do it, and do it again.
4. `fill_store` does so for every shard that is missing, and names each in the manifest.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from isthmus.core.errors import OutputError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.activation_store import ActivationStore
from isthmus.data.parts import part_of_text
from isthmus.data.prompts import Question
from isthmus.data.store_checks import require_whole
from isthmus.data.store_format import (
    ROWS_PER_SHARD,
    Role,
    Shard,
    StorageDtype,
    StoredSide,
    StoredText,
    StoreSpec,
    is_store,
    read_manifest,
    text_sha256,
)
from isthmus.data.store_writer import (
    PlannedShard,
    PutRows,
    RowTokens,
    StoreWriter,
    plan_shards,
    write_shard,
    writing_store,
)
from isthmus.models.batching import check_texts, ignore
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import Pairing
from isthmus.workflows.row_reading import (
    RowPicker,
    encoded_questions,
    groups_of_like_length,
    picked_rows,
    row_pickers,
)

PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)

_TEXTS_AT_ONCE = 64
"""Texts that are tokenized together."""


@dataclass(frozen=True)
class TextRows:
    """One text as each model sees it, and the tokens that become rows.

    Attributes:
        texts: The text by the model's role.
        pickers: What takes the rows from the states of all tokens, by role.
    """

    texts: Mapping[Role, EncodedText]
    pickers: Mapping[Role, RowPicker]

    @property
    def n_rows(self) -> int:
        """How many rows the text gives."""
        return len(self.pickers["source"].tokens)


def spec_of_store(
    models: Mapping[Role, LanguageModel],
    sites: Mapping[Role, tuple[Site, ...]],
    *,
    pairing: Pairing = "character_end",
    storage_dtype: StorageDtype = "float32",
    rows_per_shard: int = ROWS_PER_SHARD,
) -> StoreSpec:
    """Returns what the rows of a store of these models are.

    Args:
        models: One model as `source`, or two.
        sites: Where each is read.
        pairing: How tokens of two models are paired.
        storage_dtype: Type of the activations in the files.
        rows_per_shard: Most rows of a shard.

    Returns:
        The specification.
    """
    sides = {
        role: StoredSide(lm.identity, sites[role], str(lm.dtype).removeprefix("torch."))
        for role, lm in models.items()
    }
    target = sides.get("target")
    paired_by = None if target is None else pairing
    return StoreSpec(sides["source"], target, paired_by, storage_dtype, rows_per_shard)


def as_in_store(folder: str | Path, needed: StoreSpec) -> StoreSpec:
    """Returns the specification of a store that is there, if it holds what is needed.

    Args:
        folder: The store; it need not be there.
        needed: Models and sites that are needed. The store may hold more sites, and have a storage
            type and size of shards of its own.

    Returns:
        The store's specification; `needed` itself where it does not hold that, or is not there.
    """
    if not is_store(Path(folder)):
        return needed
    held = read_manifest(Path(folder)).spec
    lacks = any(
        set(side.sites) - set(held.sides[role].sites)
        for role, side in needed.sides.items()
        if role in held.sides
    )
    return needed if lacks else held.with_models_of(needed)


def texts_to_store(
    models: Mapping[Role, LanguageModel], questions: Iterable[Question], pairing: Pairing
) -> Iterator[tuple[StoredText, TextRows]]:
    """Renders and tokenizes questions, a few at a time, and pairs their tokens.

    Args:
        models: One model as `source`, or two.
        questions: What they read, with its answer where there is one; may be a stream.
        pairing: How tokens of two models are paired.

    Yields:
        tuple[StoredText, TextRows]: What the store says of the text, and what its rows come from.

    Raises:
        DataError: If a text is empty or too long for a model, or two renderings share too little.
    """
    index, stream = 0, iter(questions)
    while some := tuple(itertools.islice(stream, _TEXTS_AT_ONCE)):
        encoded = {role: encoded_questions(lm, some) for role, lm in models.items()}
        for role, lm in models.items():
            check_texts(lm, encoded[role], 1, first=index)
        for i in range(len(some)):
            rows = _rows_of({role: encoded[role][i] for role in models}, pairing)
            text = text_sha256(*rows.texts.values())
            yield StoredText(text, part_of_text(index), rows.n_rows), rows
            index += 1


def _rows_of(texts: Mapping[Role, EncodedText], pairing: Pairing) -> TextRows:
    if "target" not in texts:
        return TextRows(texts, {"source": RowPicker(torch.arange(len(texts["source"])))})
    of_source, of_target = row_pickers(texts["source"], texts["target"], pairing)
    return TextRows(texts, {"source": of_source, "target": of_target})


def capture_shard(
    folder: Path,
    spec: StoreSpec,
    models: Mapping[Role, LanguageModel],
    planned: PlannedShard[TextRows],
    *,
    batch_size: int = 64,
) -> Shard:
    """Runs the models over the texts of one shard and writes its file.

    Args:
        folder: The store; its manifest is left alone.
        spec: What its rows are.
        models: The models that it names.
        planned: The shard.
        batch_size: Texts per forward pass.

    Returns:
        What `StoreWriter.register` takes.

    Raises:
        IsthmusError: If an activation is not finite or does not fit the storage type, or the folder
            cannot be written to.
    """

    def fill(put: PutRows) -> None:
        for role, lm in models.items():
            _put_rows(lm, role, spec.sides[role].sites, planned.given, batch_size, put)

    tokens = {
        role: [RowTokens(one.texts[role], one.pickers[role].tokens) for one in planned.given]
        for role in models
    }
    return write_shard(folder, spec, planned.plan, tokens, fill)


def _put_rows(
    lm: LanguageModel,
    role: Role,
    sites: tuple[Site, ...],
    texts: tuple[TextRows, ...],
    batch_size: int,
    put: PutRows,
) -> None:
    read = [i for i, one in enumerate(texts) if one.n_rows]
    for i in set(range(len(texts))) - set(read):
        for site in sites:
            put(i, role, site, torch.empty(0, lm.d_model))
    for alike in groups_of_like_length([len(texts[i].texts[role]) for i in read]):
        chosen = [read[i] for i in alike]
        given = [(texts[i].texts[role], texts[i].pickers[role]) for i in chosen]
        for index, number, rows in picked_rows(lm, given, sites, batch_size=batch_size):
            put(chosen[index], role, sites[number], rows)


def shards_to_capture(
    writer: StoreWriter,
    models: Mapping[Role, LanguageModel],
    questions: Iterable[Question],
    *,
    append: bool = False,
    advance: Callable[[int], None] = ignore,
) -> Iterator[PlannedShard[TextRows]]:
    """Yields the shards that a store lacks; they may be captured in any order and anywhere.

    Args:
        writer: The store.
        models: The models that it names.
        questions: Every text from the first on, also those that are in the store already; these are
            compared by their hashes and not read again.
        append: Whether texts may be added to a finished store.
        advance: Told how many texts the store has already.

    Yields:
        PlannedShard[TextRows]: What `capture_shard` takes.

    Raises:
        OutputError: If a finished store has fewer texts.
        DataError: If the store holds other texts.
    """
    is_closed = writer.manifest.is_finished and not append
    texts = texts_to_store(models, questions, _pairing_of(writer.spec))
    for planned in plan_shards(texts, writer.manifest.shards, writer.spec.rows_per_shard):
        if planned.is_written:
            advance(len(planned.given))
            continue
        if is_closed:
            raise OutputError(
                f"{writer.folder} is finished with {planned.plan.first_text} texts, more were "
                "given: use --append, or choose another place"
            )
        yield planned


def _pairing_of(spec: StoreSpec) -> Pairing:
    if spec.pairing is None:
        return "character_end"
    return PAIRINGS[PAIRINGS.index(spec.pairing)]


def fill_store(
    folder: str | Path,
    spec: StoreSpec,
    models: Mapping[Role, LanguageModel],
    questions: Iterable[Question],
    *,
    batch_size: int = 64,
    append: bool = False,
    n_texts: int | None = None,
    progress: Progress,
) -> ActivationStore:
    """Makes a store, goes on with one that was not finished, or checks that a finished one fits.

    Args:
        folder: The store.
        spec: What its rows are.
        models: The models that it names.
        questions: As for `shards_to_capture`.
        batch_size: Texts per forward pass.
        append: Whether texts may be added to a finished store.
        n_texts: How many texts there are, where that is known, for the progress.
        progress: Who shows progress.

    Returns:
        The finished store.

    Raises:
        OutputError: If the folder holds something else, a store of other rows, or a finished store
            of fewer texts.
        DataError: If the store holds other texts.
        ArtifactError: If a shard that was there already is damaged. What is appended to is not
            looked at.
    """
    names = " and ".join(side.model.name for side in spec.sides.values())
    with (
        writing_store(folder, spec) as writer,
        progress.stage(f"read {names}", n_texts) as advance,
    ):
        if not append:
            require_whole(writer.folder, writer.manifest)
        missing = shards_to_capture(writer, models, questions, append=append, advance=advance)
        for planned in missing:
            writer.register(
                capture_shard(writer.folder, spec, models, planned, batch_size=batch_size)
            )
            advance(len(planned.given))
    return ActivationStore.open(folder)
