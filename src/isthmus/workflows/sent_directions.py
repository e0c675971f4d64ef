"""Directions and probes as text, for workers that do not share a disk with whoever asks them."""

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
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe_files import load_probe, save_probe
from isthmus.directions.subspace import Subspace
from isthmus.workflows.engines.jobs import Json

L = TypeVar("L")


def sent_direction(direction: Direction | Subspace) -> Json:
    """Returns the files of a direction or a subspace in base64, by name."""
    return _sent(direction, save_direction)


def sent_probe(probe: ModelProbe) -> Json:
    """Returns the files of a probe in base64, by name."""
    return _sent(probe, save_probe)


def received_direction(files: Json) -> Direction:
    """Returns the direction that `sent_direction` was given; its hashes are checked."""
    return _received(files, load_direction)


def received_learned(files: Json) -> Direction | Subspace:
    """Returns what `sent_direction` was given, of whichever kind; its hashes are checked."""
    return _received(files, load_direction_or_subspace)


def received_probe(files: Json) -> ModelProbe:
    """Returns the probe that `sent_probe` was given; its hashes are checked."""
    return _received(files, load_probe)


def _sent(made: L, save: Callable[[Path, L], None]) -> Json:
    with TemporaryDirectory(prefix="isthmus-sent-") as folder:
        save(Path(folder) / "made", made)
        return {
            path.name: base64.b64encode(path.read_bytes()).decode()
            for path in (Path(folder) / "made").iterdir()
        }


def _received(files: Json, load: Callable[[Path], L]) -> L:
    with TemporaryDirectory(prefix="isthmus-received-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(base64.b64decode(content))
        return load(Path(folder))
