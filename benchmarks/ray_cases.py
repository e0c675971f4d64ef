"""What a second worker of Ray gains: one transfer matrix, computed by one worker and by two."""

import os
from collections.abc import Iterator, Sequence
from functools import partial

import ray
from benchmarks.networks import FULL, Scale
from benchmarks.timing import Case, Check, Pair

from isthmus.studies.result import StudyResult
from isthmus.studies.transfer_matrix import transfer_matrix
from isthmus.workflows.engines.ray_engine import RayEngine

_MODELS = tuple(f"organism:{base}-backdoor" for base in ("llama", "qwen2", "gemma2", "llama-large"))
_SMALL = {"n_train": 16, "n_validation": 4, "n_test": 12, "target_sites": [1], "max_new_tokens": 2}
_LARGER = {"n_train": 40, "n_validation": 16, "n_test": 32}
_LEAST_GAIN = 1.7
_ONE, _TWO = "one worker", "two workers"


def ray_cases(scale: Scale) -> Iterator[Case]:
    """Yields one case: every ordered pair of organisms, nothing taken from the cache.

    Workers have one thread each. The cluster runs before the clock does; starting workers and
    loading torch and models is in the time.

    Args:
        scale: Four organisms and more questions for the full one, else two.

    Yields:
        Case: One and two workers.
    """
    is_full = scale.name == FULL.name
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
    )


def _matrix(models: Sequence[str], sizes: dict[str, object], n_workers: int | None) -> StudyResult:
    engine = None if n_workers is None else RayEngine(n_workers=n_workers)
    if engine is not None and not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    return transfer_matrix(models, settings=sizes, is_cached=False, engine=engine)


def _difference() -> float:
    results = [_matrix(_MODELS[:2], _SMALL, n_workers) for n_workers in (None, 1, 2)]
    return float(len({repr(one.measurements) for one in results}) - 1)
