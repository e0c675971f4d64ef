"""Checks the shards of a store against its manifest: hashes, tensors, the rows of every text."""

from pathlib import Path

import torch

from isthmus.core.artifacts import mapped_tensors, sha256_of_file
from isthmus.core.errors import ArtifactError
from isthmus.data.parts import part_of_text
from isthmus.data.store_format import Manifest, Shard, StoreSpec


def damages_of(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Checks every shard: its hash, and whether it holds what the manifest says of it.

    Args:
        folder: The store.
        manifest: What it says.

    Returns:
        What is wrong, shard by shard; nothing where all are whole.
    """
    found = []
    for shard in manifest.shards:
        path = folder / shard.plan.name
        try:
            is_whole = sha256_of_file(path) == shard.sha256
        except OSError as error:
            found.append(f"{path.name} cannot be read ({error.strerror or error})")
            continue
        if not is_whole:
            found.append(f"{path.name} does not have the recorded hash")
        elif not _is_as_said(path, shard, manifest.spec):
            found.append(f"{path.name} does not hold what the manifest says of it")
    return tuple(found)


def holds_tensors(tensors: dict[str, torch.Tensor], shard: Shard, spec: StoreSpec) -> bool:
    """Says whether a shard's tensors have the names, types and shapes of its manifest."""
    shapes = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    return shapes == spec.shapes(shard.plan.n_rows)


def _is_as_said(path: Path, shard: Shard, spec: StoreSpec) -> bool:
    tensors, plan = mapped_tensors(path), shard.plan
    if not holds_tensors(tensors, shard, spec):
        return False
    numbers = torch.arange(plan.first_text, plan.stop_text)
    counts = torch.tensor([text.n_rows for text in plan.texts], dtype=torch.int64)
    owners = torch.repeat_interleave(numbers, counts)
    parts = [part_of_text(index) for index in numbers.tolist()]
    return torch.equal(tensors["text"], owners) and parts == [text.part for text in plan.texts]


def require_whole(folder: Path, manifest: Manifest) -> None:
    """Refuses a store of which a shard is missing or damaged (`ArtifactError`).

    Args:
        folder: The store.
        manifest: What it says.
    """
    if damages := damages_of(folder, manifest):
        raise ArtifactError(
            f"{folder} is damaged: {'; '.join(damages)}: remove these files and capture "
            "again with the same texts, which writes them anew"
        )
