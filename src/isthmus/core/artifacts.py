"""The only place that reads and writes artifacts: safetensors + JSON, written atomically.

An artifact is a folder with `artifact.json` (its kind, format version, fields, their hash and that
of the tensor file) and, when it holds tensors, `tensors.safetensors`. Tensors that do not fit into
memory are written row by row (`tensor_file`) and read as memory maps (`mapped_tensors`).
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError as SafetensorError  # noqa: PLC0414 - a re-export
from safetensors.torch import load_file, save_file
from torch import Tensor

from isthmus.core.errors import ArtifactError, NonFiniteError, OutputError, ShapeError
from isthmus.core.places import (
    atomic_folder,
    file_beside,
    is_taken,
    require_writable,
    write_text,
    writing_to,
)

FORMAT = 1
MANIFEST_NAME = "artifact.json"
TENSORS_NAME = "tensors.safetensors"

TensorShape = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor that is yet to be written."""

WriteRows = Callable[[str, int, Tensor], None]
"""Writes rows of one tensor, by its name, from a row on."""

_FORMAT_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


@dataclass(frozen=True)
class Artifact:
    """What an artifact folder holds.

    Attributes:
        kind: `direction`, `activation_map`, `activations`, `organism` …
        fields: JSON values.
        tensors: Tensors by name; empty when there are none.
    """

    kind: str
    fields: dict[str, Any]
    tensors: dict[str, Tensor]


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_free(path: str | Path | None, kind: str | None = None) -> None:
    """Refuses, before any work is done, a place that could not be written to after it.

    Args:
        path: Folder that will be written; None where nothing will be.
        kind: The kind of artifact that may be replaced there; none when not given.

    Raises:
        OutputError: If the place is taken by something else, or lies where nothing can be written.
    """
    if path is None:
        return
    path = Path(path)
    with writing_to(path):
        if is_taken(path) and (kind is None or kind_at(path) != kind):
            what = "already exists" if kind is None else f"exists and is not an isthmus {kind}"
            raise OutputError(f"{path} {what}: choose another --out or remove it first")
    require_writable(path)


@contextmanager
def tensor_file(path: Path, shapes: Mapping[str, TensorShape]) -> Iterator[WriteRows]:
    """Yields what writes rows, in any order, into a safetensors file of known shapes.

    The file takes its place when the body ends without an error. Only rows that are being written
    are in memory. Rows that nobody writes are zero.

    Args:
        path: The file; its parents are made too.
        shapes: Type and shape of every tensor, by name; the first axis is the row.

    Yields:
        WriteRows: Called with a name, the first row and rows of that tensor's type and shape.

    Raises:
        OutputError: If the place cannot be written to.
        ShapeError: If rows do not fit their tensor.
    """
    path = Path(path)
    header, starts = _tensor_header(shapes)
    with file_beside(path) as staging, staging.open("r+b", buffering=0) as stream:

        def write_at(place: int, raw: memoryview) -> None:
            with writing_to(path):
                while raw:
                    n = os.pwrite(stream.fileno(), raw, place)
                    raw, place = raw[n:], place + n

        def write(name: str, first_row: int, rows: Tensor) -> None:
            dtype, shape = shapes[name]
            is_inside = 0 <= first_row <= first_row + len(rows) <= shape[0]
            if rows.dtype != dtype or tuple(rows.shape[1:]) != shape[1:] or not is_inside:
                raise ShapeError(
                    f"rows {first_row} to {first_row + len(rows)} of shape {tuple(rows.shape)} and "
                    f"{rows.dtype} do not fit {name}, {shape} of {dtype}"
                )
            size = math.prod(shape[1:]) * dtype.itemsize
            plain = rows.detach().cpu().flatten().view(torch.uint8)
            write_at(starts[name] + first_row * size, plain.numpy().data)

        write_at(0, memoryview(header))
        with writing_to(path):
            os.truncate(stream.fileno(), starts[""])
        yield write
        with writing_to(path):
            os.fsync(stream.fileno())


def _tensor_header(shapes: Mapping[str, TensorShape]) -> tuple[bytes, dict[str, int]]:
    """Returns the head of a safetensors file and where tensors begin; under "" where it ends."""
    # Wide types first, so that every tensor lies at a multiple of its width.
    names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    fields, starts, place = {}, {}, 0
    for name in names:
        dtype, shape = shapes[name]
        stop = place + math.prod(shape) * dtype.itemsize
        kind = _FORMAT_NAMES[dtype]
        fields[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, stop]}
        starts[name], place = place, stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in {**starts, "": place}.items()}


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """Returns a file's tensors as memory maps, read when used; refuses one that is not whole."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value, indented, atomically.

    Args:
        path: The file; its parents are made too.
        value: Any JSON value.

    Raises:
        OutputError: If the place cannot be written to.
        NonFiniteError: If it holds NaN or infinity, which JSON does not have.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"cannot write {path}: {error}; use null for no number") from error
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Reads one JSON file.

    Args:
        path: The file.

    Returns:
        The value it holds.

    Raises:
        ArtifactError: If it is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"cannot read {path} as JSON: {error}") from error


def write_artifact(
    path: Path, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Writes an artifact folder as a whole, replacing an artifact of the same kind.

    Args:
        path: Folder to write.
        kind: What it is.
        fields: JSON values.
        tensors: Tensors by name, on any device; left unchanged. They may share memory.

    Raises:
        OutputError: If the place cannot be written to or holds something else.
        NonFiniteError: If a field holds NaN or infinity.
    """
    path = Path(path)
    with writing_to(path):
        if is_taken(path) and kind_at(path) != kind:
            raise OutputError(f"{path} exists and is not an isthmus {kind}: choose another place")
    with atomic_folder(path, replace=True, further=(SafetensorError,)) as folder:
        manifest: dict[str, Any] = {"format": FORMAT, "kind": kind, "fields": dict(fields)}
        manifest["fields_sha256"] = _hash_of_fields(fields)
        if tensors:
            save_file(_in_own_memory(tensors), folder / TENSORS_NAME)
            # safetensors makes files that only their owner can read.
            (folder / TENSORS_NAME).chmod(0o644)
            manifest["tensors_sha256"] = sha256_of_file(folder / TENSORS_NAME)
        write_json(folder / MANIFEST_NAME, manifest)


def _hash_of_fields(fields: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of JSON values, whatever their order and layout in a file."""
    # As a file gives them back, so that tuples and lists, numbers and names as keys are alike.
    plain = json.loads(json.dumps(fields))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _in_own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns contiguous CPU tensors; a second one in the same memory is copied.

    safetensors refuses tensors that overlap.
    """
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        stored[name] = plain
    return stored


def kind_at(path: Path) -> str | None:
    """Returns the kind that an artifact folder says it holds, or None where there is none."""
    try:
        manifest = read_json(path / MANIFEST_NAME)
    except ArtifactError:
        return None
    return manifest.get("kind") if isinstance(manifest, dict) else None


def read_artifact(path: Path, kind: str | None = None) -> Artifact:
    """Reads an artifact folder and checks that it is whole.

    Args:
        path: Folder written by `write_artifact`.
        kind: The kind that is expected; any when not given.

    Returns:
        What was written, tensors on the CPU.

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, or of another kind.
    """
    path = Path(path)
    manifest = _read_manifest(path, kind)
    tensors: dict[str, Tensor] = {}
    if "tensors_sha256" in manifest:
        tensors = _read_tensors(path / TENSORS_NAME, manifest["tensors_sha256"])
    return Artifact(manifest["kind"], manifest["fields"], tensors)


def read_fields(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Reads the fields of an artifact and leaves its tensors alone.

    Args:
        path: Folder written by `write_artifact`.
        kind: The kind that is expected; any when not given.

    Returns:
        The fields as they were written.

    Raises:
        ArtifactError: If it is missing, no artifact, newer than this version, or of another kind.
    """
    fields: dict[str, Any] = _read_manifest(Path(path), kind)["fields"]
    return fields


def _read_manifest(path: Path, kind: str | None) -> dict[str, Any]:
    if not path.is_dir():
        raise ArtifactError(f"no artifact at {path}: expected a folder with {MANIFEST_NAME}")
    manifest = read_json(path / MANIFEST_NAME)
    if not _is_manifest(manifest):
        raise ArtifactError(f"{path / MANIFEST_NAME} is not an isthmus artifact")
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest['format']}, this version reads {FORMAT}: upgrade isthmus"
        )
    if kind is not None and manifest["kind"] != kind:
        raise ArtifactError(f"{path} is of kind {manifest['kind']}, expected {kind}")
    # Files of versions that did not keep the hash have none.
    if manifest.get("fields_sha256") not in (None, _hash_of_fields(manifest["fields"])):
        raise ArtifactError(
            f"{path / MANIFEST_NAME} does not hold what was written: its fields were changed by "
            "hand or damaged, restore the file or make the artifact again"
        )
    return manifest


def _is_manifest(value: Any) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(value, dict)
        and "format" in value
        and isinstance(value.get("kind"), str)
        and isinstance(value.get("fields"), dict)
    )


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: the artifact is incomplete, make it again")
    try:
        if sha256_of_file(path) != sha256:
            raise ArtifactError(f"{path} does not have the recorded hash: damaged, make it again")
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
