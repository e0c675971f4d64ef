"""The engine that needs nothing: this process, one shard after another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from isthmus.core.progress import Progress
from isthmus.workflows.engines.jobs import (
    Crew,
    Job,
    Json,
    Shard,
    ShardWorker,
    as_sent,
    make_worker,
    shard_folder,
)


@dataclass(frozen=True)
class LocalEngine:
    """Computes shards in this process, in their order."""

    def run(self, job: Job, into: Path, progress: Progress) -> Iterator[Json]:
        """Yields the answers to a job's shards.

        Args:
            job: What to compute.
            into: An empty folder; the files of shard i come to lie in `shard_folder(into, i)`.
            progress: Who shows progress.

        Yields:
            Json: One answer per shard.
        """
        with self.hold(job.worker, job.settings, progress) as crew:
            yield from crew.ask(job.name, job.shards, into)

    @contextmanager
    def hold(self, worker: str, settings: Json, progress: Progress) -> Iterator[Crew]:
        """Keeps one worker for several rounds of shards.

        Args:
            worker: `package.module:Class` of a `ShardWorker`.
            settings: What it is made with, as a JSON value.
            progress: Who shows progress.

        Yields:
            Crew: The worker.
        """
        yield _Alone(make_worker(worker, as_sent(settings), progress), progress)


@dataclass(frozen=True)
class _Alone:
    """The one worker of this process."""

    worker: ShardWorker
    progress: Progress

    def ask(self, name: str, shards: Sequence[Shard], into: Path) -> Iterator[Json]:
        with self.progress.stage(name, sum(shard.n_units for shard in shards)) as advance:
            for number, shard in enumerate(shards):
                yield as_sent(self.worker.work(as_sent(shard.asked), shard_folder(into, number)))
                advance(shard.n_units)
