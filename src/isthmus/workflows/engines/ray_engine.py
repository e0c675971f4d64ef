"""The engine that computes shards by the workers of a Ray cluster: many processes, many machines.

1. Every worker is an actor that makes the job's worker once and keeps the models that it loads.
2. A worker that is free takes the next shard, one of its own group where there is one.
3. A worker that is lost is replaced, and the shard that it was at is computed again.
4. Answers are handed on in the order of the shards, whoever computed them and when.
5. Where what is asked next depends on answers, actors stay from round to round (`hold`).
"""

import importlib.util
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isthmus.core.errors import ConfigError, EngineError
from isthmus.core.places import atomic_folder
from isthmus.core.progress import Progress
from isthmus.workflows.engines.hosting import Answer, ShardHost, fingerprint
from isthmus.workflows.engines.jobs import Crew, Job, Json, Shard, shard_folder

_PATIENCE_S = 1.0
_KNOCK_S = 10.0


@dataclass(frozen=True)
class RayEngine:
    """Computes shards by actors of a Ray cluster.

    Attributes:
        address: Of a running cluster, `auto` for the one that this machine belongs to; a cluster on
            this machine is started for the job when not given.
        n_workers: Actors at once; as many as the cluster has GPUs, or without any processors for,
            when not given.
        threads_per_worker: Threads of torch and processors of the cluster for each.
        max_retries: How often a shard is computed again because its worker was lost.
        start_timeout_s: How long to wait for a worker while there is none, in seconds.
    """

    address: str | None = None
    n_workers: int | None = None
    threads_per_worker: int = 1
    max_retries: int = 2
    start_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        n_workers = 1 if self.n_workers is None else self.n_workers
        if min(n_workers, self.threads_per_worker) < 1 or self.max_retries < 0:
            raise ConfigError(
                f"{self}: expected at least one worker and one thread, and no fewer than 0 retries"
            )

    def run(self, job: Job, into: Path, progress: Progress) -> Iterator[Json]:
        """Yields the answers to a job's shards in their order.

        Args:
            job: What to compute.
            into: An empty folder; the files of shard i come to lie in `shard_folder(into, i)`.
            progress: Who shows progress.

        Yields:
            Json: One answer per shard.

        Raises:
            ConfigError: If Ray is not installed.
            EngineError: If there is no cluster or no worker, or workers were lost too often.
            IsthmusError: What a worker raised; the others are stopped.
        """
        with self._crew(job.worker, job.settings, progress, keeps_idle=False) as crew:
            yield from crew.ask(job.name, job.shards, into)

    @contextmanager
    def hold(self, worker: str, settings: Json, progress: Progress) -> Iterator[Crew]:
        """Keeps actors for several rounds of shards.

        Args:
            worker: `package.module:Class` of a `ShardWorker`.
            settings: What every actor makes its worker with, as a JSON value.
            progress: Who shows progress.

        Yields:
            Crew: The actors, hired for the first round.

        Raises:
            ConfigError: If Ray is not installed.
            EngineError: If there is no cluster.
        """
        with self._crew(worker, settings, progress, keeps_idle=True) as crew:
            yield crew

    @contextmanager
    def _crew(
        self, worker: str, settings: Json, progress: Progress, *, keeps_idle: bool
    ) -> Iterator["_Crew"]:
        ray = _ray()
        with _connected(ray, self.address):
            made_of = worker, json.dumps(settings)
            crew = _Crew(ray, self, made_of, progress, keeps_idle=keeps_idle)
            try:
                yield crew
            finally:
                crew.dismiss()


def require_ray() -> None:
    """Refuses, before anything is computed, what only Ray could do where there is none.

    Raises:
        ConfigError: If Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "engine ray, but Ray is not installed: pip install 'isthmus[ray]', or use engine local"
        )


def _ray() -> Any:
    require_ray()
    import ray  # noqa: PLC0415 - only those who ask for it need it

    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connects to a cluster for as long as the body runs; one that is connected stays so."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Inside a job of a cluster Ray says here where the cluster is.
    address = address or os.environ.get("RAY_ADDRESS")
    # A cluster that runs has settled this already, and takes it from nobody.
    own = {} if address else {"include_dashboard": False}
    try:
        _knock(address or "")
        ray.init(address or "local", log_to_driver=False, configure_logging=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "on this machine"
        raise EngineError(
            f"no Ray cluster {where} ({' '.join(str(error).split())[:200]}): start one with "
            "'ray start --head', and give --address auto on one of its machines"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody answers: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


@dataclass
class _Seat:
    """One actor and what it is at.

    Attributes:
        actor: The actor.
        at: What is waited for: its first sign of life, or the answer to a shard; None between
            rounds.
        shard: The shard's number; None until the first sign of life and between shards.
        group: The group of its latest shard.
    """

    actor: Any
    at: Any
    shard: int | None = None
    group: str | None = None


@dataclass
class _Crew:
    """The actors of one job, or of round after round of shards."""

    ray: Any
    engine: RayEngine
    made_of: tuple[str, str]
    progress: Progress
    keeps_idle: bool
    shards: Sequence[Shard] = ()
    pending: list[int] = field(default_factory=list)
    n_lost: dict[int, int] = field(default_factory=dict)
    seats: list[_Seat] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_gpus, self.most = self._shares()
        self.waiting_since = time.monotonic()

    def ask(self, name: str, shards: Sequence[Shard], into: Path) -> Iterator[Json]:
        """Yields the answers to one round of shards in their order."""
        answers: dict[int, Json] = {}
        with self.progress.stage(name, sum(shard.n_units for shard in shards)) as advance:
            self._begin(shards)
            for number in range(len(shards)):
                while number not in answers:
                    for done, answer, files in self.finished():
                        answers[done] = answer.require()
                        _write_files(files, shard_folder(into, done))
                        advance(shards[done].n_units)
                yield answers.pop(number)

    def _begin(self, shards: Sequence[Shard]) -> None:
        if any(seat.shard is not None for seat in self.seats):
            raise EngineError("a round of shards is not over: read its answers to the end first")
        self.shards, self.pending, self.n_lost = shards, list(range(len(shards))), {}
        self.waiting_since = time.monotonic()
        for seat in [seat for seat in self.seats if seat.at is None]:
            self._assign(seat)
        for _ in range(min(self.most, len(shards)) - len(self.seats)):
            self._hire()

    def _shares(self) -> tuple[float, int]:
        """Returns how many GPUs a worker takes and how many workers there shall be."""
        has = self.ray.cluster_resources()
        n_gpus, n_processors = int(has.get("GPU", 0)), int(has.get("CPU", 0))
        n_workers = self.engine.n_workers
        n_workers = n_workers or n_gpus or max(1, n_processors // self.engine.threads_per_worker)
        largest = max(int(node["Resources"].get("GPU", 0)) for node in self.ray.nodes())
        # Whole cards where there are enough, for models that need several; else parts of one.
        share = min(n_gpus // n_workers, largest) or n_gpus / n_workers
        return math.floor(share * 1000) / 1000, n_workers

    def _hire(self) -> None:
        n_threads = self.engine.threads_per_worker
        kind = self.ray.remote(ShardHost).options(
            num_cpus=n_threads, num_gpus=self.n_gpus, max_restarts=0, max_task_retries=0
        )
        actor = kind.remote(*self.made_of, n_threads, str(Path.cwd()))
        self.seats.append(_Seat(actor, actor.hello.remote()))

    def finished(self) -> Iterator[tuple[int, Answer, dict[str, bytes]]]:
        """Waits a little and yields the shards that were answered meanwhile."""
        at = {seat.at: seat for seat in self.seats if seat.at is not None}
        ready, _ = self.ray.wait(list(at), num_returns=1, timeout=_PATIENCE_S)
        for one in ready:
            seat = at[one]
            shard, seat.shard = seat.shard, None
            try:
                found: Any = self.ray.get(one)
            except (
                self.ray.exceptions.RayActorError,
                self.ray.exceptions.WorkerCrashedError,
                self.ray.exceptions.OutOfMemoryError,
                self.ray.exceptions.ObjectLostError,
            ) as error:
                self._replace(seat, shard, error)
                continue
            if shard is None:
                _require_same_code(found)
            self._assign(seat)
            if shard is not None:
                answer = Answer.from_text(found[0])
                for note in answer.notes:
                    self.progress.note(f"{self.shards[shard].label}: {note}")
                yield shard, answer, found[1]
        self._require_someone()

    def _assign(self, seat: _Seat) -> None:
        """Gives a free worker its next shard; without one it waits, or goes home."""
        number = self._next_for(seat)
        if number is None:
            seat.at = None
            if not self.keeps_idle:
                self._let_go(seat)
            return
        self.pending.remove(number)
        shard = self.shards[number]
        seat.shard, seat.group = number, shard.group
        seat.at = seat.actor.work.remote(json.dumps(shard.asked))

    def _next_for(self, seat: _Seat) -> int | None:
        def group(number: int) -> str:
            return self.shards[number].group

        others = {one.group for one in self.seats if one is not seat}
        own = (n for n in self.pending if group(n) == seat.group)
        free = (n for n in self.pending if group(n) not in others)
        return next(own, next(free, next(iter(self.pending), None)))

    def _replace(self, seat: _Seat, number: int | None, error: Exception) -> None:
        self._let_go(seat)
        if number is None:
            # Lost before its first shard: nothing has to be computed again.
            lost, what = -1, "a worker was lost while it started"
        else:
            self.pending.insert(0, number)
            lost, what = number, f"{self.shards[number].label}: its worker was lost"
        self.n_lost[lost] = self.n_lost.get(lost, 0) + 1
        if self.n_lost[lost] > self.engine.max_retries:
            reason = " ".join(str(error).split())
            raise EngineError(
                f"{what} {self.n_lost[lost]} times, for want of memory, perhaps: use fewer workers "
                f"or larger machines. Ray says: {reason[:400]}"
            )
        self.progress.note(f"{what}; it begins again on another")
        idle = next((one for one in self.seats if one.at is None), None)
        if number is not None and idle is not None:
            # It has the models already, and a new one might wait for the place that it takes.
            self._assign(idle)
        else:
            self._hire()

    def _require_someone(self) -> None:
        if any(seat.shard is not None for seat in self.seats):
            self.waiting_since = time.monotonic()
        elif self.pending and time.monotonic() - self.waiting_since > self.engine.start_timeout_s:
            raise EngineError(
                f"no worker of {self.engine.threads_per_worker} processors and {self.n_gpus} GPUs "
                f"started in {self.engine.start_timeout_s:g} s; the cluster has "
                f"{self.ray.cluster_resources()}: ask for less, or add machines"
            )

    def _let_go(self, seat: _Seat) -> None:
        self.seats.remove(seat)
        self.ray.kill(seat.actor)

    def dismiss(self) -> None:
        """Ends every actor; safe to call at any time."""
        for seat in list(self.seats):
            self._let_go(seat)


def _require_same_code(theirs: str) -> None:
    own = fingerprint()
    if theirs != own:
        raise EngineError(
            f"a worker runs {theirs}, this process {own}: results would differ; install the same "
            "versions on every machine"
        )


def _write_files(files: dict[str, bytes], folder: Path) -> None:
    if not files:
        return
    with atomic_folder(folder, replace=True) as staging:
        for name, content in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
