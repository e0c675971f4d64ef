"""Reads a store of activations: any rows, all in order, or shuffled, without holding them all.

Shards are memory maps that are opened where rows are needed and closed afterwards, so that what is
in memory are the rows that were asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.core.artifacts import mapped_tensors
from isthmus.core.errors import ArtifactError, DataError, SiteError
from isthmus.core.sites import Site
from isthmus.data.parts import Part
from isthmus.data.store_checks import damages_of, holds_tensors, require_whole
from isthmus.data.store_format import (
    Manifest,
    Role,
    Shard,
    StoredSide,
    StoredText,
    read_manifest,
)
from isthmus.data.stored_pairs import StoredPairs


@dataclass(frozen=True)
class ActivationStore:
    """A store of one model's activations, or of pairs of two models'.

    Rows are those of the shards that the manifest names, in the order of their texts.

    Attributes:
        folder: Where it lies.
        manifest: What it holds.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> "ActivationStore":
        """Opens a store; no shard is read yet.

        Args:
            folder: A folder that `isthmus capture` wrote; it may be unfinished.

        Returns:
            What its manifest names.

        Raises:
            ArtifactError: If there is no store, it is damaged, or newer than this version.
        """
        return cls(Path(folder), read_manifest(Path(folder)))

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return self._starts[-1]

    @cached_property
    def texts(self) -> tuple[StoredText, ...]:
        """Every text, in order."""
        return tuple(text for shard in self.manifest.shards for text in shard.plan.texts)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """First row of every shard, and one past the last row."""
        return (0, *accumulate(shard.plan.n_rows for shard in self.manifest.shards))

    def side(self, role: Role) -> StoredSide:
        """Returns what one model gave; refuses a target where there is none (`DataError`)."""
        if role not in self.manifest.spec.sides:
            raise DataError(
                f"{self.folder} holds no {role}: it is a store of one model, "
                "capture pairs with --target"
            )
        return self.manifest.spec.sides[role]

    def rows(
        self,
        indices: Sequence[int] | Int[Tensor, " row"],
        sites: Sequence[Site] | None = None,
        *,
        role: Role = "source",
    ) -> Float[Tensor, "row width"]:
        """Reads any rows.

        Args:
            indices: Rows, counted over the whole store, in any order and as often as wanted.
            sites: Sites that are put side by side, all of the model's when not given.
            role: Which of the two models of a pair.

        Returns:
            The rows in the order of the indices, float32.

        Raises:
            DataError: If there is no such row or no such model.
            SiteError: If the store does not hold a site.
            ArtifactError: If a shard is missing or damaged.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64)
        names = self._names(role, sites)
        found = torch.empty(len(wanted), self._width(role, sites))
        for which, local, tensors in self._by_shard(wanted):
            columns = [tensors[name][local].float() for name in names]
            found[which] = torch.cat(columns, dim=-1)
        return found

    def alignment(
        self, indices: Sequence[int] | Int[Tensor, " row"], *, role: Role = "source"
    ) -> dict[str, Int[Tensor, " row"]]:
        """Says which tokens rows are.

        Args:
            indices: Rows, counted over the whole store.
            role: Which of the two models of a pair.

        Returns:
            For every row its `text`, counted over the store, the index of the `token` in it, the
            `token_id`, and the `end`, the character of the rendered text that the token ends at.

        Raises:
            DataError: If there is no such row or no such model.
        """
        self.side(role)
        wanted = torch.as_tensor(indices, dtype=torch.int64)
        names = {"text": "text"} | {one: f"{role}.{one}" for one in ("token", "token_id", "end")}
        found = {name: torch.empty(len(wanted), dtype=torch.int64) for name in names}
        for which, local, tensors in self._by_shard(wanted):
            for name, stored in names.items():
                found[name][which] = tensors[stored][local].long()
        return found

    def batches(
        self, n_rows: int = 8192, sites: Sequence[Site] | None = None, *, role: Role = "source"
    ) -> Iterator[Tensor]:
        """Reads every row in order.

        Args:
            n_rows: Rows at once; the last batch may have fewer.
            sites: As for `rows`.
            role: As for `rows`.

        Yields:
            Tensor: Rows, `[row width]`, float32.
        """
        for start in range(0, self.n_rows, n_rows):
            yield self.rows(range(start, min(start + n_rows, self.n_rows)), sites, role=role)

    def pairs(
        self,
        part: Part | None = None,
        source_sites: Sequence[Site] | None = None,
        target_sites: Sequence[Site] | None = None,
    ) -> StoredPairs:
        """Returns pairs of some sites and texts, as fits of maps take them; nothing is read yet.

        Args:
            part: Texts that maps are fitted on, choose by, or are measured on; all when not given.
            source_sites: Source sites, side by side in this order; all when not given.
            target_sites: The same in the target.

        Returns:
            Pairs that are read when they are used.

        Raises:
            DataError: If this is a store of one model.
            SiteError: If the store does not hold a site.
        """
        sites = {"source": source_sites, "target": target_sites}
        widths = self._width("source", source_sites), self._width("target", target_sites)

        def read(indices: Tensor, role: Role) -> Tensor:
            return self.rows(indices, sites[role], role=role)

        chosen = [part is None or text.part == part for text in self.texts]
        ends = accumulate(text.n_rows for text in self.texts)
        ranges = tuple(
            (end - text.n_rows, end)
            for text, end, is_in in zip(self.texts, ends, chosen, strict=True)
            if is_in
        )
        return StoredPairs(read, ranges, widths)

    def damages(self) -> tuple[str, ...]:
        """Checks every shard against its hash and the manifest.

        Returns:
            What is wrong, shard by shard; nothing for a store that is whole.
        """
        return damages_of(self.folder, self.manifest)

    def verify(self) -> None:
        """Refuses a store with a damaged shard.

        Raises:
            ArtifactError: Naming every shard that is missing or is not what the manifest says.
        """
        require_whole(self.folder, self.manifest)

    def summary(self) -> dict[str, Any]:
        """Returns what the store holds, as JSON values."""
        spec = self.manifest.spec
        parts: dict[str, int] = {}
        for text in self.texts:
            parts[text.part] = parts.get(text.part, 0) + text.n_rows
        return {
            "is_finished": self.manifest.is_finished,
            "sides": {role: side.to_json() for role, side in spec.sides.items()},
            "pairing": spec.pairing,
            "storage_dtype": spec.storage_dtype,
            "rows_per_shard": spec.rows_per_shard,
            "n_rows": self.n_rows,
            "n_rows_by_part": parts,
            "n_texts": len(self.texts),
            "n_shards": len(self.manifest.shards),
            "n_bytes": self.n_rows * spec.bytes_per_row,
            "versions": self.manifest.versions,
        }

    def _names(self, role: Role, sites: Sequence[Site] | None) -> list[str]:
        held = self.side(role).sites
        if missing := [str(site) for site in sites or () if site not in held]:
            raise SiteError(
                f"{self.folder} does not hold {role} {', '.join(missing)}: "
                f"it has {', '.join(map(str, held))}"
            )
        return [f"{role}.{site}" for site in (held if sites is None else sites)]

    def _width(self, role: Role, sites: Sequence[Site] | None) -> int:
        return len(self._names(role, sites)) * self.side(role).model.d_model

    def _by_shard(self, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Yields for every shard in turn which rows are wanted from it, and its tensors."""
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.n_rows:
            raise DataError(
                f"rows {int(wanted.min())} to {int(wanted.max())} of {self.folder}: "
                f"it has rows 0 to {self.n_rows - 1}"
            )
        starts = torch.tensor(self._starts)
        owners = torch.searchsorted(starts, wanted, right=True) - 1
        for number in owners.unique().tolist():
            which = (owners == number).nonzero().flatten()
            yield which, wanted[which] - starts[number], self._mapped(self.manifest.shards[number])

    def _mapped(self, shard: Shard) -> dict[str, Tensor]:
        tensors = mapped_tensors(self.folder / shard.plan.name)
        if not holds_tensors(tensors, shard, self.manifest.spec):
            raise ArtifactError(
                f"{shard.plan.name} does not hold the tensors of its manifest: "
                "run isthmus inspect --verify on the store"
            )
        return tensors
