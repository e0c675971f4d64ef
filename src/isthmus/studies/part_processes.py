"""Computes parts of a reproduction in processes of their own, each with one thread.

1. A process computes one part after another, so that what it imports is imported once.
2. Questions and answers are lines of JSON; what else a process says is kept for when it ends.
3. A process that ends without an answer costs its part only: another takes its place.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from tempfile import TemporaryFile
from typing import IO, Any

from isthmus.core.provenance import StageTime
from isthmus.studies.paper_models import Scope
from isthmus.workflows.engines.jobs import Json

_SERVER = "isthmus.studies.part_running"

_KEEPING_PAGES = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Settings of glibc's allocator: tensors that come and go in every block of a model otherwise go
back to the system each time, and page faults add to the time of small models."""


@dataclass(frozen=True)
class ComputedPart:
    """What became of a part.

    Attributes:
        name: The part.
        took: How long it took.
        problem: Why it could not be computed; empty when it was.
    """

    name: str
    took: StageTime
    problem: str


@dataclass
class _PartProcess:
    """One process, started when it is first asked for something and again when it has ended."""

    said: IO[bytes] = field(default_factory=TemporaryFile)
    running: "subprocess.Popen[str] | None" = None

    def __enter__(self) -> "_PartProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.communicate()
        self.said.close()

    def compute(self, asked: dict[str, Any]) -> ComputedPart:
        start = time.perf_counter()
        answer = self._ask(asked)
        took = StageTime(f"part: {asked['name']}", time.perf_counter() - start, 0.0)
        if answer is None:
            return ComputedPart(asked["name"], took, self._last_words())
        took = StageTime(took.name, took.wall_s, answer["cpu_s"])
        return ComputedPart(asked["name"], took, answer["problem"])

    def _ask(self, asked: Json) -> Json | None:
        """Returns the answer, or nothing if the process ends first."""
        if self.running is None:
            # A program of its own rather than a fork, which would inherit locks of torch's threads.
            self.running = subprocess.Popen(  # noqa: S603 - a module of this package
                [sys.executable, "-m", _SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.said,
                text=True,
                env={**_KEEPING_PAGES, **os.environ, "OMP_NUM_THREADS": "1"},
            )
        questions, answers = self.running.stdin, self.running.stdout
        if questions is None or answers is None:
            return None
        with suppress(BrokenPipeError):
            questions.write(json.dumps(asked) + "\n")
            questions.flush()
        line = answers.readline()
        return json.loads(line) if line else None

    def _last_words(self) -> str:
        """Waits for the end of the process and returns why it ended."""
        code = None
        if self.running is not None:
            self.running.communicate()
            code, self.running = self.running.returncode, None
        self.said.seek(0)
        said = self.said.read().decode(errors="replace").strip().rpartition("\n")[2]
        self.said.seek(0)
        self.said.truncate()
        is_error = code is not None and code > 0
        return said if said and is_error else f"its process ended with {code}: want of memory?"


def compute_in_processes(
    names: Sequence[str], scope: Scope, n_processes: int, *, is_cached: bool
) -> Iterator[ComputedPart]:
    """Computes parts into the cache, several at once.

    Args:
        names: Parts, in the order in which they are begun.
        scope: What is measured, and how much.
        n_processes: How many at once.
        is_cached: Whether parts that the cache holds are used rather than computed again.

    Yields:
        ComputedPart: Each part as soon as it is done.
    """
    idle: SimpleQueue[_PartProcess] = SimpleQueue()

    def compute(name: str) -> ComputedPart:
        process = idle.get()
        try:
            return process.compute({"name": name, "scope": scope.to_json(), "is_cached": is_cached})
        finally:
            idle.put(process)

    with ExitStack() as open_until_done:
        pool = open_until_done.enter_context(ThreadPoolExecutor(n_processes))
        for _ in range(min(n_processes, len(names))):
            idle.put(open_until_done.enter_context(_PartProcess()))
        # Whoever stops early waits for no part.
        open_until_done.callback(pool.shutdown, wait=False, cancel_futures=True)
        for done in as_completed([pool.submit(compute, name) for name in names]):
            yield done.result()
