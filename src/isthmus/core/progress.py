"""How long work tells what it is doing, without knowing who listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Someone who shows progress."""

    def stage(
        self, name: str, total: int | None = None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a stage; the value it yields is called with the units done since the last call.

        Args:
            name: What is being done, for people.
            total: How many units there are, if that is known.

        Returns:
            A context that lasts as long as the stage.
        """
        ...

    def note(self, message: str) -> None:
        """Shows one line."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Opens a stage that nobody sees.

        Args:
            name: What is being done.
            total: How many units there are.

        Yields:
            Callable[[int], None]: A function that does nothing.
        """
        yield lambda _units: None

    def note(self, message: str) -> None:
        """Shows nothing."""
