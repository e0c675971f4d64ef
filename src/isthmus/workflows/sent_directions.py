"""Directions as text, for workers that do not share a disk with whoever asks them."""

import base64
from pathlib import Path
from tempfile import TemporaryDirectory

from isthmus.directions.direction import Direction
from isthmus.directions.files import load_direction, save_direction
from isthmus.workflows.engines.jobs import Json


def sent_direction(direction: Direction) -> Json:
    """Returns the files of a direction in base64, by name."""
    with TemporaryDirectory(prefix="isthmus-direction-") as folder:
        save_direction(Path(folder) / "direction", direction)
        return {
            path.name: base64.b64encode(path.read_bytes()).decode()
            for path in (Path(folder) / "direction").iterdir()
        }


def received_direction(files: Json) -> Direction:
    """Returns the direction that `sent_direction` was given; its hashes are checked."""
    with TemporaryDirectory(prefix="isthmus-direction-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(base64.b64decode(content))
        return load_direction(Path(folder))
