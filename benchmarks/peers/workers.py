"""Processes that answer for one library each, in its own environment."""

import json
import os
import select
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from isthmus.core.errors import ConfigError

TIMEOUT_S = 900.0
"""How long one answer may take."""


class WorkerError(Exception):
    """A worker cannot do what it is asked; says why."""


@dataclass
class Worker:
    """A process that is spoken to line by line.

    Attributes:
        name: What results are called.
        process: The process.
        about: What it said of itself when it was prepared.
    """

    name: str
    process: subprocess.Popen[bytes]
    about: dict[str, Any] = field(default_factory=dict)

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Args:
            verb: `prepare`, `capture` or `steer`.
            **arguments: Of the request.

        Returns:
            The answer.

        Raises:
            WorkerError: If it refuses, fails, ends or takes too long.
        """
        given, answers = _pipes(self.process)
        try:
            given.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            given.flush()
        except (OSError, ValueError) as error:
            raise WorkerError(f"the process ended: {error}") from error
        line = b"-"
        # Libraries print while they are imported, before answers have a channel of their own.
        while line and not line.startswith(b'{"ok"'):
            ready, _, _ = select.select([answers], [], [], TIMEOUT_S)
            line = answers.readline() if ready else b""
        if not line:
            self.end()
            raise WorkerError(
                "the process ended without an answer"
                if ready
                else f"no answer within {TIMEOUT_S:.0f} seconds"
            )
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise WorkerError(answer["reason"])
        return answer

    def end(self) -> None:
        """Ends the process and waits for it."""
        given, answers = _pipes(self.process)
        with suppress(OSError):
            given.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        answers.close()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise ConfigError("the worker was started without pipes: use start_worker")
    return process.stdin, process.stdout


def start_worker(
    name: str, python: Path, runner: Sequence[str], log: Path, *, threads: int
) -> Worker:
    """Starts a runner script under some interpreter, without network.

    Args:
        name: What results are called.
        python: Interpreter of the library's environment.
        runner: Script and arguments.
        log: File for what the library prints.
        threads: How many it computes with.

    Returns:
        The worker, which waits for requests.
    """
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(python), *runner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            bufsize=0,
        )
    return Worker(name, process)
