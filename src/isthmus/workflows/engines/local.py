"""The engine that needs nothing: this process, one shard after another."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isthmus.core.progress import Progress
from isthmus.workflows.engines.jobs import Job, Json, as_sent, make_worker, shard_folder


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
        worker = make_worker(job.worker, as_sent(job.settings), progress)
        with progress.stage(job.name, sum(shard.n_units for shard in job.shards)) as advance:
            for number, shard in enumerate(job.shards):
                yield as_sent(worker.work(as_sent(shard.asked), shard_folder(into, number)))
                advance(shard.n_units)
