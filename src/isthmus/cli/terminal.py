"""What people see in the terminal: progress bars, notes, tables."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isthmus.core.gates import GATED, RANDOM_GATE, gate_before

if TYPE_CHECKING:
    from rich.console import Console

    from isthmus.evaluation.measurements import Measurement


def error_console() -> "Console":
    """Returns the console on standard error."""
    from rich.console import Console

    return Console(stderr=True)


def print_text(text: str) -> None:
    """Prints a line on standard output as it is."""
    from rich.console import Console

    Console().print(text, markup=False, highlight=False, soft_wrap=True)


class RichProgress:
    """Progress bars on standard error; on a pipe one line per finished stage."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._console = error_console()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            # On a pipe it would leave empty lines.
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "RichProgress":
        from transformers.utils import logging

        # The bars of transformers would be drawn across these.
        logging.disable_progress_bar()
        self._bars.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._bars.__exit__(*details)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Opens a bar that disappears when the stage ends.

        Args:
            name: What is being done.
            total: How many units there are.

        Yields:
            Callable[[int], None]: A function to be called with the units done since the last call.
        """
        task = self._bars.add_task(name, total=total)
        try:
            yield lambda units: self._bars.advance(task, units)
        finally:
            self._bars.remove_task(task)
        if not self._console.is_terminal:
            self.note(f"done: {name}")

    def note(self, message: str) -> None:
        """Shows one line above the bars."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


_WIDTH_OF_A_PIPE = 240

_SHOWN = {
    "swap": "swap",
    "recovery": "recovery",
    "answer_accuracy": "answers right",
    "behaviour_rate": "behaviour",
    "benign_kl": "benign KL",
    "benign_accuracy": "benign right",
}


def print_results(measurements: "Sequence[Measurement]") -> None:
    """Prints the test measurements as one table per target, controls at their strongest draw."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        # A pipe has no width of its own: 80 columns would break every number in two.
        console = Console(width=_WIDTH_OF_A_PIPE)
    tested = [m for m in measurements if m.split == "test" and m.metric in _SHOWN]
    for target in dict.fromkeys(m.target for m in tested):
        here = [m for m in tested if m.target == target]
        n = max(m.n or 0 for m in here)
        table = Table(title=f"{here[0].source} → {target} (test, n = {n}, 95 % intervals)")
        table.add_column("condition")
        table.add_column("where")
        for heading in _SHOWN.values():
            table.add_column(heading, justify="right")
        for (condition, method, gate), rows in _grouped(here).items():
            first = next((m for m in rows if m.target_site), rows[0])
            where = f"{first.target_site} {first.positions}" if first.target_site else ""
            if where and first.strength is not None:
                where += f" ×{first.strength:g}"
            cells = [_cell([m for m in rows if m.metric == metric]) for metric in _SHOWN]
            name = f"{condition} {method or ''}".strip()
            # Random is the gate there, not the direction behind it.
            named = {None: name, GATED: f"{name}, {GATED}", RANDOM_GATE: RANDOM_GATE}
            table.add_row(named[gate], where, *cells)
        console.print(table)


def _grouped(
    measurements: "Sequence[Measurement]",
) -> "dict[tuple[str, str | None, str | None], list[Measurement]]":
    grouped: dict[tuple[str, str | None, str | None], list[Measurement]] = {}
    for one in measurements:
        key = (one.condition, one.map, gate_before(one.edit))
        grouped.setdefault(key, []).append(one)
    return grouped


def _cell(measurements: "Sequence[Measurement]") -> str:
    defined = [m for m in measurements if m.value is not None]
    if not defined:
        return "undefined" if measurements else ""
    return value_as_text(max(defined, key=lambda m: m.value or 0.0))


def value_as_text(measured: "Measurement") -> str:
    """Writes a number that is defined, with its interval where it has one."""
    text = f"{measured.value:.3f}"
    if measured.ci_low is not None and measured.ci_high is not None:
        text += f" [{measured.ci_low:.2f}, {measured.ci_high:.2f}]"
    return text
