"""Workers of small jobs, importable by the processes of Ray."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from isthmus.core.errors import DataError
from isthmus.core.progress import Progress
from isthmus.workflows.engines.jobs import Job, Json, Shard

WORKER = f"{__name__}:CountingWorker"


@dataclass
class CountingWorker:
    """Squares numbers and writes down who did, and how often each was asked."""

    settings: Json
    progress: Progress

    def work(self, asked: Json, place: Path) -> Json:
        number = asked["number"]
        log = Path(self.settings["log"])
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"{number} {os.getpid()}\n")
        if number == self.settings.get("refused"):
            raise DataError(f"number {number} is refused: choose another")
        if number == self.settings.get("broken"):
            raise ZeroDivisionError("a bug")
        if number == self.settings.get("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        if number in self.settings.get("together", ()):
            wait_until(lambda: set(self.settings["together"]) <= dict(asked_of(log)).keys())
        if number == self.settings.get("waits"):
            wait_until(log.with_name("go").exists)
        self.progress.note(f"squared {number}")
        (place / "deep").mkdir(parents=True)
        (place / "deep" / "square.json").write_text(json.dumps(number**2), encoding="utf-8")
        return {"square": number**2, "third": number / 3}


def wait_until(is_there: Callable[[], bool]) -> None:
    """Waits for something, a minute at most."""
    for _ in range(1200):
        if is_there():
            return
        time.sleep(0.05)
    raise TimeoutError("nothing came")


def counting_job(log: Path, n: int = 6, groups: str = "", **settings: Json) -> Job:
    """A job of squares; `groups` has a letter per shard."""
    shards = tuple(Shard({"number": i}, f"number {i}", group=groups[i : i + 1]) for i in range(n))
    return Job("squares", WORKER, {"log": str(log), **settings}, shards)


def asked_of(log: Path) -> list[tuple[int, int]]:
    """Numbers and processes, in the order in which they were asked."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [(int(number), int(pid)) for number, pid in map(str.split, lines)]
