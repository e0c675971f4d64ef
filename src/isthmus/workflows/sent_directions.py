"""Directions as text, for workers that do not share a disk with whoever asks them."""

import base64
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from isthmus.directions.direction import Direction
from isthmus.directions.files import (
    load_direction,
    load_direction_or_subspace,
    save_direction,
)
from isthmus.directions.subspace import Subspace
from isthmus.workflows.engines.jobs import Json

L = TypeVar("L")


def sent_direction(direction: Direction | Subspace) -> Json:
    """Returns the files of a direction or a subspace in base64, by name."""
    with TemporaryDirectory(prefix="isthmus-direction-") as folder:
        save_direction(Path(folder) / "direction", direction)
        return {
            path.name: base64.b64encode(path.read_bytes()).decode()
            for path in (Path(folder) / "direction").iterdir()
        }


def received_direction(files: Json) -> Direction:
    """Returns the direction that `sent_direction` was given; its hashes are checked."""
    return _received(files, load_direction)


def received_learned(files: Json) -> Direction | Subspace:
    """Returns what `sent_direction` was given, of whichever kind; its hashes are checked."""
    return _received(files, load_direction_or_subspace)


def _received(files: Json, load: Callable[[Path], L]) -> L:
    with TemporaryDirectory(prefix="isthmus-direction-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(base64.b64decode(content))
        return load(Path(folder))
