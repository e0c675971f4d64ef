"""What a second worker of Ray gains: one transfer matrix, computed by one worker and by two."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import ray
import torch
from benchmarks.networks import FULL, Scale
from benchmarks.timing import Case, Check, Pair

from isthmus.core.errors import IsthmusError
from isthmus.studies.result import StudyResult
from isthmus.studies.transfer_matrix import transfer_matrix
from isthmus.workflows.engines.ray_engine import RayEngine

_MODELS = tuple(f"organism:{base}-backdoor" for base in ("llama", "qwen2", "gemma2", "llama-large"))
_SMALL = {"n_train": 16, "n_validation": 4, "n_test": 12, "target_sites": [1], "max_new_tokens": 2}
_LARGER = {"n_train": 40, "n_validation": 16, "n_test": 32}
_LEAST_GAIN = 1.7
_ONE, _TWO = "one worker", "two workers"
_ALONE, _AT_ONCE = "one process", "two processes, half of the passes each"
_PASSES = """
import sys
import torch
from benchmarks.networks import FULL, random_model
torch.set_num_threads(1)
lm = random_model(FULL, torch.Generator().manual_seed(0))
ids = torch.ones(8, 64, dtype=torch.long)
with torch.inference_mode():
    for _ in range(int(sys.argv[1])):
        lm.model(ids)
"""


def ray_cases(scale: Scale) -> Iterator[Case]:
    """Yields what two processes gain at all, and what two workers do in a transfer matrix.

    The matrix has every ordered pair of organisms, nothing taken from the cache. Workers and
    processes have one thread each. The cluster runs before the clock does; starting workers and
    loading torch and models is in the time.

    Args:
        scale: Four organisms and more questions for the full one, else two.

    Yields:
        Case: Two processes and one, then two workers and one.
    """
    is_full = scale.name == FULL.name
    n_passes = 80 if is_full else 4
    yield Case(
        "Ray",
        "plain passes, without Ray: what the machine allows",
        {
            _ALONE: partial(_plain_passes, [n_passes]),
            _AT_ONCE: partial(_plain_passes, [n_passes // 2] * 2),
        },
        (Pair(_AT_ONCE, _ALONE),),
        n_repeats=6 if is_full else 1,
        n_warm_up=0,
    )
    models, sizes = (_MODELS, _LARGER) if is_full else (_MODELS[:2], _SMALL)
    yield Case(
        "Ray",
        f"transfer matrix of {len(models)} organisms",
        {
            name: partial(_matrix, models, sizes, n_workers)
            for name, n_workers in ((_ONE, 1), (_TWO, 2))
        },
        (Pair(_TWO, _ONE, limit=1 / _LEAST_GAIN),),
        (Check("one worker = two workers = this process", _difference),),
        n_repeats=6 if is_full else 1,
        # Every run starts workers of its own: the first is like the others.
        n_warm_up=0,
    )


def _matrix(models: Sequence[str], sizes: dict[str, object], n_workers: int | None) -> StudyResult:
    engine = None if n_workers is None else RayEngine(n_workers=n_workers)
    if engine is not None and not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    return transfer_matrix(models, settings=sizes, is_cached=False, engine=engine)


def _plain_passes(shares: Sequence[int]) -> None:
    root = Path(__file__).resolve().parents[1]
    running = [subprocess.Popen([sys.executable, "-c", _PASSES, str(n)], cwd=root) for n in shares]
    if any(one.wait() for one in running):
        raise IsthmusError("a process that runs plain passes failed")


def _difference() -> float:
    n_threads = torch.get_num_threads()
    # As many as a worker has: more threads add up in another order.
    torch.set_num_threads(1)
    try:
        results = [_matrix(_MODELS[:2], _SMALL, n_workers) for n_workers in (None, 1, 2)]
    finally:
        torch.set_num_threads(n_threads)
    return float(len({repr(one.measurements) for one in results}) - 1)
