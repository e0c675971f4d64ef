"""Small stores without models: every number says which text, row, model, site and column it is."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.activation_store import ActivationStore
from isthmus.data.parts import part_of_text
from isthmus.data.store_format import Role, StoredSide, StoredText, StoreSpec, text_sha256
from isthmus.data.store_writer import (
    PlannedShard,
    PutRows,
    RowTokens,
    StoreWriter,
    plan_shards,
    write_shard,
)

SOURCE = StoredSide(ModelIdentity("one", "w1", "t1", 3, 4), (Site(0), Site(2)))
TARGET = StoredSide(ModelIdentity("two", "w2", "t2", 5, 4), (Site(1),))
PAIRS = StoreSpec(SOURCE, TARGET, "character_end", rows_per_shard=7)


def text(index: int, n_rows: int) -> tuple[StoredText, EncodedText]:
    words = f"text {index} " * 3
    tokens = tuple(range(1000 * index, 1000 * index + n_rows))
    encoded = EncodedText(words, tokens, tuple(range(1, n_rows + 1)), (False,) * n_rows, 1)
    return StoredText(text_sha256(encoded), part_of_text(index), n_rows), encoded


def texts_of(lengths: Iterable[int]) -> Iterator[tuple[StoredText, EncodedText]]:
    return (text(index, n_rows) for index, n_rows in enumerate(lengths))


def values(spec: StoreSpec, role: Role, site: Site, index: int, n_rows: int) -> Tensor:
    """Numbers that bfloat16 holds, too: rows differ from each other and between texts."""
    width = spec.sides[role].model.d_model
    rows = (7 * index + torch.arange(n_rows)) % 120
    return rows[:, None] + 0.0 * torch.zeros(width) + (role == "target") + 0.5 * site.layer


def shard_of(folder: Path, spec: StoreSpec, planned: PlannedShard[EncodedText]):
    def fill(put: PutRows) -> None:
        for i in reversed(range(len(planned.given))):
            for role, side in spec.sides.items():
                for site in side.sites:
                    n_rows = planned.plan.texts[i].n_rows
                    put(
                        i, role, site, values(spec, role, site, planned.plan.first_text + i, n_rows)
                    )

    tokens = [RowTokens(one, torch.arange(len(one))) for one in planned.given]
    return write_shard(folder, spec, planned.plan, dict.fromkeys(spec.sides, tokens), fill)


def fill(folder: Path, lengths: Iterable[int], spec: StoreSpec = PAIRS, *, n_shards: int = 9999):
    """Fills a store with texts of so many rows; stops after so many new shards."""
    writer = StoreWriter(folder, spec)
    for planned in plan_shards(texts_of(lengths), writer.manifest.shards, spec.rows_per_shard):
        if planned.is_written:
            continue
        if not n_shards:
            return ActivationStore.open(folder)
        writer.register(shard_of(writer.folder, spec, planned))
        n_shards -= 1
    writer.finish()
    return ActivationStore.open(folder)


def expected(lengths: Iterable[int], role: Role = "source", spec: StoreSpec = PAIRS) -> Tensor:
    """All rows that a store of these texts has, the sites side by side."""
    sites = spec.sides[role].sites
    rows = [
        torch.cat([values(spec, role, site, i, n) for site in sites], dim=-1)
        for i, n in enumerate(lengths)
    ]
    return torch.cat(rows)
