"""Measures isthmus on an accelerator, at the dimensions of published models: `gpu.py --help`."""

import argparse
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.gpu_cases import PRECISIONS, GpuCase, Load, computing_in, map_cases, model_cases
from benchmarks.gpu_networks import PAIRS, PUBLISHED, TINY, TINY_PAIRS, build_model, move_to
from benchmarks.results import conditions

from isthmus.core.artifacts import write_json
from isthmus.core.errors import IsthmusError
from isthmus.core.places import write_text
from isthmus.models.language_model import LanguageModel

LOAD = Load(n_texts=32, n_tokens=256, n_steered=16, n_new=48, n_rows=65_536, n_steps=300)
TINY_LOAD = Load(n_texts=4, n_tokens=24, n_steered=4, n_new=6, n_rows=400, n_steps=10)
_N_RUNS = 3


class OutOfTimeError(Exception):
    """A case took longer than it may."""


@dataclass(frozen=True)
class Row:
    """What was found about one case.

    Attributes:
        subject: Model, or source and target.
        precision: How it computed.
        case: What was done.
        seconds: Shortest of the runs, after one that does not count; None where it failed.
        rate: Amount per second.
        unit: What is counted.
        peak_gb: Largest memory of the device, weights included; None on a CPU.
        differences: By what values differ that must agree.
        error: Why it failed, if it did.
    """

    subject: str
    precision: str
    case: str
    seconds: float | None = None
    rate: float | None = None
    unit: str = ""
    peak_gb: float | None = None
    differences: dict[str, float] | None = None
    error: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether all values agree."""
        return not any((self.differences or {}).values())


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends a block that takes too long.

    Args:
        seconds: How long it may take.

    Yields:
        None: Inside the limit.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Run:
    """Rows of one run, written after every case so that nothing is lost."""

    def __init__(self, out: Path, device: torch.device, limit_s: float, budget_s: float) -> None:
        self.out = out
        self.device = device
        self.limit_s = limit_s
        self.end = time.monotonic() + budget_s
        self.rows: list[Row] = []
        about = {"device": _name(device), "limit_s": limit_s, "budget_s": budget_s}
        self.conditions = conditions(about)

    def attempt(self, subject: str, precision: str, name: str, work: Callable[[], Any]) -> Any:
        """Does something within the limits; where that fails the row says why.

        Args:
            subject: Model, or source and target.
            precision: How it computes.
            name: What is done.
            work: Does it.

        Returns:
            What it returned, or None where it failed.
        """
        left = min(self.limit_s, self.end - time.monotonic())
        if left <= 0:
            self.add(Row(subject, precision, name, error="no time left"))
            return None
        try:
            with time_limit(left):
                return work()
        except (OutOfTimeError, IsthmusError, RuntimeError, MemoryError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self.add(Row(subject, precision, name, error=said))
        self.clear()
        return None

    def measure(self, subject: str, precision: str, case: GpuCase) -> None:
        """Times a case and checks its values."""
        row = self.attempt(
            subject, precision, case.name, lambda: self._measured(subject, precision, case)
        )
        if row is not None:
            self.add(row)

    def _measured(self, subject: str, precision: str, case: GpuCase) -> Row:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        case.work()
        seconds = min(self._seconds(case.work) for _ in range(_N_RUNS))
        peak = None
        if self.device.type == "cuda":
            peak = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        found = {what: check() for what, check in case.checks}
        rate = case.amount / seconds
        return Row(subject, precision, case.name, seconds, rate, case.unit, peak, found)

    def _seconds(self, work: Callable[[], Any]) -> float:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Gives back memory that nothing refers to."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def add(self, row: Row) -> None:
        """Keeps a row, shows it, and writes everything so far."""
        self.rows.append(row)
        print(_line(row), flush=True)
        rows = [asdict(one) | {"is_right": one.is_right} for one in self.rows]
        write_json(self.out / "gpu.json", {"conditions": self.conditions, "rows": rows})
        write_text(self.out / "gpu.md", self.table())

    def table(self) -> str:
        """Returns the rows as Markdown."""
        heading = "| model | precision | case | seconds | rate | peak GB | values |"
        lines = [_name(self.device), "", heading, "| --- " * 7 + "|", *map(_line, self.rows)]
        return "\n".join(lines) + "\n"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _line(row: Row) -> str:
    if row.seconds is None or row.rate is None:
        cells = [row.subject, row.precision, row.case, "", "", "", f"failed: {row.error}"]
    else:
        wrong = [f"{w} differs by {d:.3g}" for w, d in (row.differences or {}).items() if d]
        values = "; ".join(wrong) or ("equal" if row.differences else "")
        peak = "" if row.peak_gb is None else f"{row.peak_gb:g}"
        shown = [f"{row.seconds:.4f}", f"{row.rate:,.0f} {row.unit}/s", peak, values]
        cells = [row.subject, row.precision, row.case, *shown]
    return f"| {' | '.join(cells)} |"


def measure_models(run: Run, sizes: Any, load: Load) -> None:
    """Builds every model once and measures it in float32, tf32 and bf16."""
    for name, size in sizes.items():
        lm: LanguageModel | None = run.attempt(
            name,
            "float32",
            "weights",
            lambda size=size, name=name: build_model(name, size, run.device, 0),
        )
        if lm is None:
            continue
        for precision in PRECISIONS:
            if precision == "bf16":
                move_to(lm, torch.bfloat16)
            # The weights of bf16 are of that type: nothing is converted on the way.
            with computing_in("tf32" if precision == "tf32" else "float32", run.device):
                for case in model_cases(lm, load, 0):
                    run.measure(name, precision, case)
        del lm, case
        run.clear()


def measure_maps(run: Run, sizes: Any, pairs: Sequence[tuple[str, str]], load: Load) -> None:
    """Fits maps between the widths of every pair."""
    for source, target in pairs:
        widths = (sizes[source].d_model, sizes[target].d_model)
        subject = f"{source} → {target} ({widths[0]} → {widths[1]})"
        for precision in PRECISIONS:
            for case in map_cases(widths, load, run.device, precision):
                run.measure(subject, precision, case)
            run.clear()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes `gpu.json` and `gpu.md`, and returns the exit code.

    Args:
        arguments: Command line; that of the process when not given.

    Returns:
        0, or 1 when values that must agree do not or there is no such device.
    """
    given = _parse(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device here: use --device cpu --tiny", file=sys.stderr)
        return 1
    given.out.mkdir(parents=True, exist_ok=True)
    run = Run(given.out, torch.device(given.device), given.limit_s, given.budget_s)
    sizes, pairs = (TINY, TINY_PAIRS) if given.tiny else (PUBLISHED, PAIRS)
    load = TINY_LOAD if given.tiny else LOAD
    if "maps" in given.only:
        measure_maps(run, sizes, pairs, load)
    if "models" in given.only:
        measure_models(run, sizes, load)
    return 0 if run.rows and all(row.is_right for row in run.rows) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures capture, edits per row, generation and fits of maps on one device, "
        "with random weights, and checks values against plain hooks."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script out")
    parser.add_argument("--limit-s", type=float, default=45, help="seconds per case")
    parser.add_argument("--budget-s", type=float, default=450, help="seconds in all")
    parser.add_argument("--only", nargs="+", choices=("maps", "models"), default=["maps", "models"])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
