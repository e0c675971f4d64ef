"""The only place that reads and writes artifacts: safetensors + JSON, written atomically.

An artifact is a folder with `artifact.json` (its kind, format version, fields, and the hash of the
tensor file) and, when it holds tensors, `tensors.safetensors`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError as SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isthmus.core.errors import ArtifactError, OutputError

FORMAT = 1
MANIFEST_NAME = "artifact.json"
TENSORS_NAME = "tensors.safetensors"


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


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the body ends, and vanishes if it raises.

    Args:
        path: The folder to make; its parents are made too.
        replace: Whether a folder that is already there may be replaced, as a whole.

    Yields:
        A folder beside `path` to write into.

    Raises:
        OutputError: If the place cannot be written to, or is taken and `replace` is false.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise OutputError(f"{path} already exists: choose another --out or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
    try:
        yield staging
        staging.chmod(0o755)
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / "old"
            path.rename(retired)
            staging.rename(path)
            shutil.rmtree(retired.parent)
        else:
            staging.rename(path)
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that readers see either the old or the whole new content.

    Raises:
        OutputError: If the place cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(staging).chmod(0o644)
        Path(staging).replace(path)
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
    finally:
        Path(staging).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value, indented, atomically.

    Raises:
        OutputError: If the place cannot be written to.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads one JSON file.

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
        tensors: Tensors by name; copied to contiguous CPU memory.

    Raises:
        OutputError: If the place cannot be written to or holds something else.
    """
    path = Path(path)
    if path.exists() and _kind_at(path) != kind:
        raise OutputError(f"{path} exists and is not an isthmus {kind}: choose another place")
    with atomic_folder(path, replace=True) as folder:
        manifest: dict[str, Any] = {"format": FORMAT, "kind": kind, "fields": dict(fields)}
        if tensors:
            contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            save_file(contiguous, folder / TENSORS_NAME)
            manifest["tensors_sha256"] = sha256_of_file(folder / TENSORS_NAME)
        write_json(folder / MANIFEST_NAME, manifest)


def _kind_at(path: Path) -> str | None:
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

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, or of another kind.
    """
    path = Path(path)
    if not path.is_dir():
        raise ArtifactError(f"no artifact at {path}: expected a folder with {MANIFEST_NAME}")
    manifest = read_json(path / MANIFEST_NAME)
    if not isinstance(manifest, dict) or not {"format", "kind", "fields"} <= manifest.keys():
        raise ArtifactError(f"{path / MANIFEST_NAME} is not an isthmus artifact")
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest['format']}, this version reads {FORMAT}: upgrade isthmus"
        )
    if kind is not None and manifest["kind"] != kind:
        raise ArtifactError(f"{path} holds a {manifest['kind']}, expected a {kind}")
    tensors: dict[str, Tensor] = {}
    if "tensors_sha256" in manifest:
        tensors = _read_tensors(path / TENSORS_NAME, manifest["tensors_sha256"])
    return Artifact(manifest["kind"], manifest["fields"], tensors)


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: the artifact is incomplete, make it again")
    if sha256_of_file(path) != sha256:
        raise ArtifactError(f"{path} does not have the recorded hash: damaged, make it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
