"""What runs in a process of Ray: makes a job's worker once and computes shards with it.

What goes in and out is text and bytes: names, JSON, and the files that a shard wrote.
"""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import override

from isthmus.core import errors
from isthmus.core.errors import EngineError, IsthmusError
from isthmus.core.progress import SilentProgress
from isthmus.core.provenance import code_hash, package_versions
from isthmus.workflows.engines.jobs import Json, ShardWorker, make_worker


@dataclass
class NotedProgress(SilentProgress):
    """Shows nothing, and keeps what it is told for those who asked.

    Attributes:
        said: Notes since they were last taken.
    """

    said: list[str] = field(default_factory=list)

    @override
    def note(self, message: str) -> None:
        """Keeps one line."""
        self.said.append(message)


@dataclass(frozen=True)
class Answer:
    """What became of a shard.

    Attributes:
        value: The worker's answer; None when it failed.
        notes: What it said meanwhile.
        problem: Class and message of the error, if there was one.
    """

    value: Json
    notes: tuple[str, ...] = ()
    problem: tuple[str, str] | None = None

    def to_text(self) -> str:
        """Returns the answer as JSON text."""
        return json.dumps({"value": self.value, "notes": self.notes, "problem": self.problem})

    @classmethod
    def from_text(cls, text: str) -> "Answer":
        """Reads what `to_text` wrote.

        Args:
            text: JSON text.

        Returns:
            The answer.
        """
        fields = json.loads(text)
        problem = None if fields["problem"] is None else tuple(fields["problem"])
        return cls(fields["value"], tuple(fields["notes"]), problem)

    def require(self) -> Json:
        """Returns the value.

        Returns:
            What the worker answered.

        Raises:
            IsthmusError: What the worker raised, of the same class and with the same message.
        """
        if self.problem is None:
            return self.value
        name, message = self.problem
        kind = getattr(errors, name, EngineError)
        raise kind(message)


class ShardHost:
    """Computes shards of one job in this process.

    Args:
        worker: `package.module:Class`.
        settings: The job's settings as JSON text.
        n_threads: Threads of torch.
        folder: Where relative paths start, if this machine has it.
    """

    def __init__(self, worker: str, settings: str, n_threads: int, folder: str) -> None:
        # Whatever the worker imports, torch among it, is imported after this.
        os.environ["OMP_NUM_THREADS"] = str(n_threads)
        if Path(folder).is_dir():
            os.chdir(folder)
        self._made_of = (worker, settings)
        self._worker: ShardWorker | None = None
        self._progress = NotedProgress()

    def hello(self) -> str:
        """Returns what code this process runs; see `fingerprint`."""
        return fingerprint()

    def work(self, asked: str) -> tuple[str, dict[str, bytes]]:
        """Computes one shard.

        Args:
            asked: The shard as JSON text.

        Returns:
            An `Answer` as text, and the bytes of the files that the shard wrote, by relative path.
        """
        try:
            # Made here rather than with the host, so that its errors are those of a shard.
            if self._worker is None:
                name, settings = self._made_of
                self._worker = make_worker(name, json.loads(settings), self._progress)
            with tempfile.TemporaryDirectory(prefix="isthmus-shard-") as folder:
                value = self._worker.work(json.loads(asked), Path(folder) / "files")
                files = files_below(Path(folder) / "files")
        except IsthmusError as error:
            problem = (type(error).__name__, str(error))
            return Answer(None, self._notes(), problem).to_text(), {}
        return Answer(value, self._notes()).to_text(), files

    def _notes(self) -> tuple[str, ...]:
        said = tuple(self._progress.said)
        self._progress.said.clear()
        return said


def fingerprint() -> str:
    """Returns what must be the same wherever shards of one job are computed."""
    return json.dumps({"isthmus' code": code_hash()[:12], **package_versions()})


def files_below(folder: Path) -> dict[str, bytes]:
    """Reads every file below a folder, by relative path; none where there is no folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
