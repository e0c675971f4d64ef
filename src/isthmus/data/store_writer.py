"""Writes a store of activations, shard by shard, so that any of them may be written again.

1. `plan_shards` cuts a stream of texts into shards. Shards that the manifest names stay as they
   are; between them texts are taken in order until the next one would exceed the rows of a shard.
2. `write_shard` writes the file of one shard from rows in any order. It needs nothing but the plan.
3. `StoreWriter` names finished shards in the manifest. What a killed process has left behind is
   not named there: it is removed, and written anew.
"""

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.core.artifacts import sha256_of_file, tensor_file
from isthmus.core.errors import DataError, NonFiniteError, OutputError
from isthmus.core.provenance import package_versions
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.store_format import (
    MANIFEST_NAME,
    Manifest,
    Role,
    Shard,
    ShardPlan,
    StoredText,
    StoreSpec,
    read_manifest,
)
from isthmus.data.store_lock import written_alone

T = TypeVar("T")

PutRows = Callable[[int, Role, Site, Tensor], None]
"""Keeps all rows of one text at one site: its number within the shard, model, site, rows."""


@dataclass(frozen=True)
class PlannedShard(Generic[T]):
    """A shard with what its rows are made from.

    Attributes:
        plan: Which texts it holds.
        given: What was given with each of these texts.
        is_written: Whether the manifest names it already.
    """

    plan: ShardPlan
    given: tuple[T, ...]
    is_written: bool


def plan_shards(
    texts: Iterable[tuple[StoredText, T]], written: Sequence[Shard], rows_per_shard: int
) -> Iterator[PlannedShard[T]]:
    """Cuts texts into shards; holds the texts of one shard at a time.

    Where shards begin depends on the texts before them alone, so that a second run, or another
    process, cuts alike.

    Args:
        texts: Every text of the store from its first on, with whatever its rows are made from.
        written: Shards that exist, in order; texts may be missing before, between and after them.
        rows_per_shard: Most rows of a shard, unless one text alone has more.

    Yields:
        PlannedShard[T]: Written and new ones in the order of their texts.

    Raises:
        DataError: If the texts are not those of the shards that exist.
    """
    waiting = {shard.plan.first_text: shard.plan for shard in written}
    stream = enumerate(texts)
    found: list[StoredText] = []
    given: list[T] = []
    first, n_rows = 0, 0

    def cut(stop: int, *, is_written: bool = False) -> PlannedShard[T]:
        nonlocal first, n_rows
        made = PlannedShard(ShardPlan(first, tuple(found)), tuple(given), is_written)
        first, n_rows = stop, 0
        found.clear()
        given.clear()
        return made

    for index, (text, payload) in stream:
        existing = waiting.get(first)
        is_full = existing is None and n_rows + text.n_rows > rows_per_shard
        if found and existing is None and (is_full or index in waiting):
            yield cut(index)
            existing = waiting.get(first)
        found.append(text)
        given.append(payload)
        n_rows += text.n_rows
        if existing is not None:
            _require_same(text, existing.texts[len(found) - 1], index)
            if len(found) == len(existing.texts):
                del waiting[first]
                yield cut(index + 1, is_written=True)
    if waiting:
        n_held = max(plan.stop_text for plan in waiting.values())
        raise DataError(
            f"the store holds {n_held} texts, only {first + len(found)} were given: give the texts "
            "that it was begun with, or choose another place"
        )
    if found:
        yield cut(first + len(found))


def _require_same(given: StoredText, held: StoredText, index: int) -> None:
    if given != held:
        raise DataError(
            f"text {index} is not the one that the store holds ({given.n_rows} rows of "
            f"{given.sha256[:8]}, there are {held.n_rows} of {held.sha256[:8]}): give the texts "
            "that it was begun with, or choose another place"
        )


@dataclass(frozen=True)
class RowTokens:
    """Which tokens of a text its rows are.

    Attributes:
        text: The text.
        tokens: For every row the token's index; of a span its last token's.
    """

    text: EncodedText
    tokens: Int[Tensor, " row"]


def write_shard(
    folder: Path,
    spec: StoreSpec,
    plan: ShardPlan,
    tokens: Mapping[Role, Sequence[RowTokens]],
    fill: Callable[[PutRows], None],
) -> Shard:
    """Writes the file of one shard; the store's manifest is left alone.

    Writing it again gives the same file. Only the rows being put are in memory.

    Args:
        folder: The store.
        spec: What its rows are.
        plan: Which texts the shard holds.
        tokens: For every model and text which tokens its rows are.
        fill: Is given what keeps rows, and calls it once for every text, model and site.

    Returns:
        What the manifest is to name.

    Raises:
        OutputError: If the folder cannot be written to.
        NonFiniteError: If an activation does not fit the storage type.
        DataError: If rows of a text are missing or given twice.
    """
    starts = torch.tensor([0, *(text.n_rows for text in plan.texts)]).cumsum(0).tolist()
    path = Path(folder) / plan.name
    seen: set[tuple[int, Role, Site]] = set()
    with tensor_file(path, spec.shapes(plan.n_rows)) as write:

        def put(index: int, role: Role, site: Site, rows: Float[Tensor, "row d_model"]) -> None:
            key = index, role, site
            if key in seen or len(rows) != plan.texts[index].n_rows:
                raise DataError(
                    f"{len(rows)} rows of text {plan.first_text + index} at {role} {site}: "
                    f"expected {plan.texts[index].n_rows}, once"
                )
            seen.add(key)
            write(f"{role}.{site}", starts[index], _stored(rows, spec, f"{role} {site}"))

        fill(put)
        if missing := len(plan.texts) * sum(len(s.sites) for s in spec.sides.values()) - len(seen):
            raise DataError(f"{plan.name}: rows of {missing} texts and sites are missing")
        for name, values in _alignment(plan, tokens).items():
            write(name, 0, values)
    return Shard(plan, sha256_of_file(path))


def _stored(rows: Tensor, spec: StoreSpec, where: str) -> Tensor:
    kept = rows.detach().to(spec.dtype)
    if not bool(torch.isfinite(kept).all()):
        raise NonFiniteError(
            f"activations at {where} hold NaN, infinity or values beyond {spec.storage_dtype}: "
            "use storage_dtype bfloat16 or float32, and load the model in one of them"
        )
    return kept


def _alignment(plan: ShardPlan, tokens: Mapping[Role, Sequence[RowTokens]]) -> dict[str, Tensor]:
    counts = torch.tensor([text.n_rows for text in plan.texts])
    numbers = torch.arange(plan.first_text, plan.stop_text)
    found = {"text": torch.repeat_interleave(numbers, counts)}
    for role, texts in tokens.items():
        of_text = [
            (
                one.tokens,
                torch.tensor(one.text.token_ids)[one.tokens],
                torch.tensor(one.text.ends)[one.tokens],
            )
            for one in texts
        ]
        for name, values in zip(
            ("token", "token_id", "end"), zip(*of_text, strict=True), strict=True
        ):
            found[f"{role}.{name}"] = torch.cat(values).to(torch.int32)
    return found


@contextmanager
def writing_store(folder: str | Path, spec: StoreSpec) -> Iterator["StoreWriter"]:
    """Opens a store and says at the end of the block that every text was read.

    One process at a time writes a store. A store that the block began and that has no shard when it
    fails is removed: there is nothing to go on with.

    Args:
        folder: The store.
        spec: What its rows are.

    Yields:
        StoreWriter: To be given every shard that is missing.

    Raises:
        OutputError: If the folder holds something else or a store of other rows, another process
            writes it, or it cannot be written to.
        DataError: If there is no row, or texts are missing between the shards.
    """
    with written_alone(Path(folder)):
        writer = StoreWriter(folder, spec)
        try:
            yield writer
            writer.finish()
        except BaseException:
            writer.remove_if_empty()
            raise


class StoreWriter:
    """Names finished shards in a store's manifest.

    Opening makes the folder, or goes on with a store of the same rows. Files that the manifest does
    not name are removed, and shards whose file is gone no longer count. One process registers
    shards; any number may write them.

    Args:
        folder: The store.
        spec: What its rows are.

    Attributes:
        folder: The store.
        manifest: What is written so far.

    Raises:
        OutputError: If the folder holds something else or a store of other rows, or cannot be
            written to.
    """

    folder: Path
    manifest: Manifest

    def __init__(self, folder: str | Path, spec: StoreSpec) -> None:
        self.folder = Path(folder)
        if (self.folder / MANIFEST_NAME).is_file():
            self.manifest = read_manifest(self.folder)
            if differences := self.manifest.spec.differences_to(spec):
                raise OutputError(
                    f"{folder} holds a store of other rows ({'; '.join(differences)}): "
                    "choose another place, or remove it first"
                )
        else:
            leftover = _leftovers(self.folder, frozenset())
            if self.folder.exists() and set(_entries(self.folder)) - set(leftover):
                raise OutputError(
                    f"{folder} exists and is not an isthmus store: choose another place"
                )
            self.manifest = Manifest(spec, (), is_finished=False, versions=package_versions())
            self.manifest.write(self.folder)
        for path in _leftovers(self.folder, {shard.plan.name for shard in self.manifest.shards}):
            _remove(path)
        there = tuple(s for s in self.manifest.shards if (self.folder / s.plan.name).is_file())
        if there != self.manifest.shards:
            self._replace(replace(self.manifest, shards=there, is_finished=False))

    @property
    def spec(self) -> StoreSpec:
        """What the store's rows are."""
        return self.manifest.spec

    def register(self, shard: Shard) -> None:
        """Names a shard in the manifest: from now on it counts.

        Args:
            shard: What `write_shard` returned, in any order; one that is named already is nothing
                new.

        Raises:
            DataError: If the shard holds texts that another one holds.
        """
        held = {one.plan.first_text: one for one in self.manifest.shards}
        if held.get(shard.plan.first_text) == shard:
            return
        shards = sorted([*self.manifest.shards, shard], key=lambda one: one.plan.first_text)
        for before, after in itertools.pairwise(shards):
            if before.plan.stop_text > after.plan.first_text:
                raise DataError(
                    f"{before.plan.name} and {after.plan.name} hold the same texts: "
                    "cut the texts with plan_shards"
                )
        self._replace(replace(self.manifest, shards=tuple(shards), is_finished=False))

    def finish(self) -> None:
        """Says that every text was read.

        Raises:
            DataError: If there is no row, or texts are missing between the shards.
        """
        stops = [0, *(shard.plan.stop_text for shard in self.manifest.shards)]
        firsts = [shard.plan.first_text for shard in self.manifest.shards]
        if firsts != stops[:-1]:
            raise DataError(f"{self.folder} lacks texts between its shards: write these first")
        if not any(shard.plan.n_rows for shard in self.manifest.shards):
            raise DataError(
                f"no row for {self.folder}: give at least one text with tokens, and for pairs "
                "models whose texts have tokens that end together"
            )
        if not self.manifest.is_finished:
            self._replace(replace(self.manifest, is_finished=True))

    def remove_if_empty(self) -> None:
        """Removes a store without a shard, and its folder where nothing else is in it."""
        if self.manifest.shards:
            return
        for path in (*_leftovers(self.folder, frozenset()), self.folder / MANIFEST_NAME):
            _remove(path)
        with suppress(OSError):
            self.folder.rmdir()

    def _replace(self, manifest: Manifest) -> None:
        manifest.write(self.folder)
        self.manifest = manifest


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _leftovers(folder: Path, named: frozenset[str] | set[str]) -> list[Path]:
    """Returns what a store's manifest does not name: a killed process left it."""
    ours = ("shard-", ".shard-", f".{MANIFEST_NAME}.")
    return [p for p in _entries(folder) if p.name.startswith(ours) and p.name not in named]
