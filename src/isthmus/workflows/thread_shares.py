"""Shares the processors among crossings that run at once; the last ones take what others free."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from isthmus.core.progress import Progress


@dataclass
class ThreadShares:
    """Hands out torch threads, equally to all who work at the moment.

    Torch's number of threads belongs to the thread that sets it, so every worker sets its own.

    Attributes:
        n_processors: Threads in all.
        waiting: Workers that have not started yet; their share is not handed out meanwhile, unless
            fewer may work at once.
        n_parallel: Most workers at once.
        is_stopped: Set when nobody waits for the work any more: every worker then ends where it
            next takes its share.
    """

    n_processors: int
    waiting: int
    n_parallel: int
    is_stopped: threading.Event = field(default_factory=threading.Event)
    _n_working: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Counts the calling thread as a worker while the body runs."""
        with self._lock:
            self._n_working += 1
            self.waiting -= 1
        try:
            yield
        finally:
            with self._lock:
                self._n_working -= 1

    def take(self, most: int) -> None:
        """Gives the calling thread its present share.

        Args:
            most: Threads that are of use to it at most.

        Raises:
            KeyboardInterrupt: If the work was stopped.
        """
        if self.is_stopped.is_set():
            raise KeyboardInterrupt
        with self._lock:
            n_sharing = min(self.n_parallel, self._n_working + self.waiting)
        share = max(1, min(most, self.n_processors // max(1, n_sharing)))
        if torch.get_num_threads() != share:
            torch.set_num_threads(share)


@dataclass(frozen=True)
class SharingProgress:
    """Progress of one worker; at every sign of life the worker takes its present share.

    Attributes:
        shown: Who shows the progress.
        shares: Who hands out threads.
        most: Threads that are of use to the worker at most.
    """

    shown: Progress
    shares: ThreadShares
    most: int

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Opens a stage.

        Args:
            name: What is being done.
            total: How many units there are.

        Yields:
            Callable[[int], None]: A function to be called with the units done since the last call.
        """
        self.shares.take(self.most)
        with self.shown.stage(name, total) as advance:

            def go_on(units: int) -> None:
                self.shares.take(self.most)
                advance(units)

            yield go_on

    def note(self, message: str) -> None:
        """Shows one line."""
        self.shown.note(message)
