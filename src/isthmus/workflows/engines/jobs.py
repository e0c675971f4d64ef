"""A job cut into shards that can be computed anywhere, in any order, and again.

1. A job names a class by module and name and gives it settings; every worker makes one of these and
   keeps what it loads.
2. A shard is a JSON value. A worker answers with a JSON value and may write a folder of files.
3. Neither says who computes it, so the same shards are computed whatever the engine is.
"""

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from isthmus.core.errors import ConfigError
from isthmus.core.progress import Progress

Json = Any
"""What `json.dumps` writes: numbers, texts, lists, and dictionaries by text."""


@dataclass(frozen=True)
class Shard:
    """A piece of a job that depends on no other piece.

    Attributes:
        asked: What a worker is asked, as a JSON value.
        label: Name for people.
        group: Shards of one group share what a worker prepares; a worker stays with its group.
        n_units: How much of the job's progress it is.
    """

    asked: Json
    label: str
    group: str = ""
    n_units: int = 1


@dataclass(frozen=True)
class Job:
    """Shards, and who can compute them.

    Attributes:
        name: What is done, for people.
        worker: `package.module:Class` of a `ShardWorker`.
        settings: What every worker is made with, as a JSON value.
        shards: The pieces, in the order in which answers are wanted.
    """

    name: str
    worker: str
    settings: Json
    shards: tuple[Shard, ...]


@runtime_checkable
class ShardWorker(Protocol):
    """Computes shards of one job; made with the job's settings and someone who shows progress."""

    def __init__(self, settings: Json, progress: Progress) -> None: ...

    def work(self, asked: Json, place: Path) -> Json:
        """Computes one shard; asked the same again it answers the same.

        Args:
            asked: The shard.
            place: A folder that does not exist yet; what it holds afterwards goes to the caller.

        Returns:
            The answer, as a JSON value.

        Raises:
            IsthmusError: If the shard cannot be computed anywhere.
        """
        ...


@runtime_checkable
class Crew(Protocol):
    """Workers that stay for round after round of shards, as what comes next depends on answers."""

    def ask(self, name: str, shards: Sequence[Shard], into: Path) -> Iterator[Json]:
        """Yields the answers to one round of shards in their order.

        Args:
            name: What is done, for people.
            shards: The pieces.
            into: An empty folder; the files of shard i come to lie in `shard_folder(into, i)`.

        Returns:
            An iterator over one answer per shard; a round ends before the next is asked for.

        Raises:
            IsthmusError: Of the first shard that is seen to fail, or if workers cannot work.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Computes jobs."""

    def hold(self, worker: str, settings: Json, progress: Progress) -> AbstractContextManager[Crew]:
        """Keeps workers, with the models that they load, for several rounds of shards.

        Args:
            worker: `package.module:Class` of a `ShardWorker`.
            settings: What every worker is made with, as a JSON value.
            progress: Who shows progress.

        Returns:
            A context that lasts as long as the workers.
        """
        ...

    def run(self, job: Job, into: Path, progress: Progress) -> Iterator[Json]:
        """Yields the answers to a job's shards in their order, each as soon as it is its turn.

        Args:
            job: What to compute.
            into: An empty folder; the files of shard i come to lie in `shard_folder(into, i)`.
            progress: Who shows progress.

        Returns:
            An iterator over one answer per shard.

        Raises:
            IsthmusError: Of the first shard that is seen to fail, or if the engine cannot work.
        """
        ...


def shard_folder(into: Path, number: int) -> Path:
    """Returns where the files of a shard lie."""
    return into / f"shard-{number}"


def make_worker(name: str, settings: Json, progress: Progress) -> ShardWorker:
    """Makes what computes the shards of a job.

    Args:
        name: `package.module:Class`.
        settings: The job's settings.
        progress: Who shows progress.

    Returns:
        The worker.

    Raises:
        ConfigError: If there is no such class.
    """
    module, _, attribute = name.partition(":")
    try:
        kind: type[ShardWorker] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"no worker {name!r} here ({error}): name it package.module:Class, and install isthmus "
            "in the same version on every machine"
        ) from error
    return kind(settings, progress)


def as_sent(value: Json) -> Json:
    """Returns a JSON value as it arrives elsewhere: tuples become lists.

    >>> as_sent({"sites": (1, 2)})
    {'sites': [1, 2]}
    """
    return json.loads(json.dumps(value))
