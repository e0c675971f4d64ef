"""What a result needs to be repeated: code, versions, machine, seconds per stage."""

import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from isthmus.core.progress import Progress

_PACKAGES = ("isthmus", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide results."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def code_hash() -> str:
    """Returns a hash that changes with any line of isthmus."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def source_commit() -> str | None:
    """Returns the commit of the checkout isthmus runs from, `-dirty` when changed, or None."""
    folder = Path(__file__).parent
    git = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", "provenance.py"]
    try:
        subprocess.run(tracked, check=True, capture_output=True)  # noqa: S603 - fixed command
        done = subprocess.run(git, check=True, capture_output=True, text=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def made_with() -> dict[str, Any]:
    """Returns what an artifact says of the code that made it: `versions` and `commit`."""
    return {"versions": package_versions(), "commit": source_commit()}


def machine() -> dict[str, Any]:
    """Returns what kind of machine this is, without its name or paths."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "n_cpus": os.cpu_count(),
    }


@dataclass(frozen=True)
class StageTime:
    """How long a stage took.

    Attributes:
        name: The stage.
        wall_s: Seconds that passed.
        cpu_s: Seconds of processor time of the thread that ran it. What torch hands to threads of
            its own is not in it; what other stages do meanwhile is not either.
    """

    name: str
    wall_s: float
    cpu_s: float


@dataclass
class StageClock:
    """A `Progress` that also remembers how long each stage took.

    Stages may run in several threads at once; each begins and ends in one thread.

    Attributes:
        shown: Who shows the progress.
        stages: Stages that ended without an error, in the order in which they ended.
    """

    shown: Progress
    stages: list[StageTime] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Opens a stage and times it.

        Args:
            name: What is being done.
            total: How many units there are.

        Yields:
            Callable[[int], None]: A function to be called with the units done since the last call.
        """
        wall, cpu = time.perf_counter(), time.thread_time()
        with self.shown.stage(name, total) as advance:
            yield advance
        took = StageTime(name, time.perf_counter() - wall, time.thread_time() - cpu)
        self.stages.append(took)

    def note(self, message: str) -> None:
        """Shows one line."""
        self.shown.note(message)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the stages as JSON values, seconds rounded to milliseconds."""
        return [
            {key: round(v, 3) if isinstance(v, float) else v for key, v in asdict(stage).items()}
            for stage in self.stages
        ]
