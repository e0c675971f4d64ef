"""Map fits against the machine's float64 matrix product, and their memory against the rows.

Operations are counted as follows, for widths s → t and n pairs.

1. Moments: 2 n s (s + t), the two products of the data with itself.
2. Ridge: 8 s² t + 4 s³ for turning both parts of the pairs into the basis of Sxx, where the error
   of any number of strengths costs next to nothing, and for one weight, plus 9 s³ for the
   eigendecomposition (Golub and Van Loan 2013, "Matrix Computations", section 8.3).
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch
from benchmarks.networks import Scale
from benchmarks.timing import Case, Check, Pair
from jaxtyping import Float
from torch import Tensor

from isthmus.maps.base import AffineMap
from isthmus.maps.moments import PairMoments
from isthmus.maps.ridge import RidgeFitter

_MOMENTS, _RIDGE = "PairMoments.update", "RidgeFitter.fit"
_BARE, _EIGH, _GEMM = "bare eigh and products", "eigh alone", "float64 product"
_MANY = 1_000_000
_NARROW, _MOST_PAIRS = (256, 384), (1_024_000, 10_240_000)
_GEMM_WIDTH = 1024
_GEMM_WORK = 2.0 * _GEMM_WIDTH**3
_ROWS_AT_ONCE = 1024
_MEMORY_LIMIT = 1.05

_STREAM = f"""
import resource, sys, torch
from isthmus.maps.moments import PairMoments
torch.set_num_threads(1)
moments = PairMoments(int(sys.argv[1]), int(sys.argv[2]))
def resident(which):
    try:
        status = open("/proc/self/status").read()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Elsewhere ru_maxrss will do; on Linux it starts from that of the parent process.
    return int(status.partition(which)[2].split()[0])
before = resident("VmRSS:")
for batch in range(int(sys.argv[3])):
    source = torch.full(({_ROWS_AT_ONCE}, moments.d_source), float(batch))
    moments.update(source, torch.full(({_ROWS_AT_ONCE}, moments.d_target), float(batch)))
sys.stdout.write(str(resident("VmHWM:") - before))
"""


def map_cases(scale: Scale, generator: torch.Generator) -> Iterator[Case]:
    """Yields one case per pair of widths for speed, one for a stream, and one for its memory.

    Args:
        scale: Sizes.
        generator: Source of randomness.

    Yields:
        Case: Moments, ridge fit and their bare algebra; or peaks of memory.
    """
    for d_source, d_target in scale.map_widths:
        yield _speed_case(d_source, d_target, scale.n_rows, generator)
    yield _stream_case(scale, generator)
    yield _memory_case(scale.stream_widths, scale.n_streamed_memory, scale.n_repeats)
    if scale.n_streamed_memory[-1] >= _MANY:
        # So many wide pairs would take hours; what is held does not depend on the width of a run.
        yield _memory_case(_NARROW, _MOST_PAIRS, scale.n_repeats)


def _speed_case(d_source: int, d_target: int, n_rows: int, generator: torch.Generator) -> Case:
    source, target = _linear_pairs(n_rows, d_source, d_target, generator)
    train, selection = _moments(source[::2], target[::2]), _moments(source[1::2], target[1::2])
    square = torch.randn(_GEMM_WIDTH, _GEMM_WIDTH, dtype=torch.float64, generator=generator)
    fit = partial(RidgeFitter().fit, train, selection)
    work_moments = 2.0 * n_rows * d_source * (d_source + d_target)
    return Case(
        "Maps",
        f"{d_source} → {d_target}, {n_rows} pairs",
        {
            _MOMENTS: partial(_moments, source, target),
            _RIDGE: fit,
            _BARE: partial(_bare_algebra, train, selection),
            _EIGH: partial(torch.linalg.eigh, train.source_scatter),
            _GEMM: partial(torch.mm, square, square),
        },
        (
            Pair(_MOMENTS, _GEMM, kind="rate", work=(work_moments, _GEMM_WORK)),
            Pair(_RIDGE, _GEMM, kind="rate", work=(_ridge_work(d_source, d_target), _GEMM_WORK)),
            Pair(_EIGH, _GEMM, kind="rate", work=(9.0 * d_source**3, _GEMM_WORK)),
            Pair(_RIDGE, _BARE),
        ),
        (
            Check(
                f"{_MOMENTS} = products of all centred rows, relative",
                lambda: _moments_error(_moments(source, target), source, target),
                1e-10,
            ),
            Check(
                f"{_RIDGE} = solution of the normal equations, relative",
                lambda: _ridge_error(fit(), train),
                1e-5,
            ),
        ),
    )


def _memory_case(widths: tuple[int, int], n_pairs: tuple[int, int], n_repeats: int) -> Case:
    few, many = (n // _ROWS_AT_ONCE for n in n_pairs)
    counts = {f"{n * _ROWS_AT_ONCE} rows": partial(stream_growth, *widths, n) for n in (few, many)}
    pair = Pair(
        f"{many * _ROWS_AT_ONCE} rows", f"{few * _ROWS_AT_ONCE} rows", _MEMORY_LIMIT, "memory"
    )
    return Case(
        "Maps",
        f"peak memory of moments, {_arrow(widths)}",
        counts,
        (pair,),
        returns_cost=True,
        n_repeats=1 if many * _ROWS_AT_ONCE >= _MANY else max(1, min(3, n_repeats // 5)),
    )


def _stream_case(scale: Scale, generator: torch.Generator) -> Case:
    """Moments of a stream that no memory has to hold, alone and with the ridge fit at its end."""
    d_source, d_target = scale.stream_widths
    few, many = scale.n_streamed
    block = _linear_pairs(_ROWS_AT_ONCE * 4, d_source, d_target, generator)
    square = torch.randn(_GEMM_WIDTH, _GEMM_WIDTH, dtype=torch.float64, generator=generator)
    per_row = 2.0 * d_source * (d_source + d_target)
    solve = _ridge_work(d_source, d_target)
    is_long = many >= _MANY
    short, long, whole = f"{few} pairs", f"{many} pairs", f"{many} pairs and ridge"
    return Case(
        "Maps",
        f"stream of pairs, {_arrow(scale.stream_widths)}",
        {
            short: partial(_streamed, block, few),
            long: partial(_streamed, block, many),
            whole: partial(_streamed_ridge, block, many),
            _GEMM: partial(torch.mm, square, square),
        },
        (
            Pair(long, _GEMM, kind="rate", work=(many * per_row, _GEMM_WORK)),
            Pair(whole, _GEMM, kind="rate", work=(many * per_row + solve, _GEMM_WORK)),
            # Linear time: as many pairs a second, however many there are.
            Pair(long, short, kind="rate", work=(float(many), float(few))),
        ),
        # Minutes each: a round warms up by itself.
        n_repeats=1 if is_long else max(1, min(3, scale.n_repeats // 5)),
        n_warm_up=0 if is_long else 1,
    )


def _ridge_work(d_source: int, d_target: int) -> float:
    return 8.0 * d_source**2 * d_target + 13.0 * d_source**3


def _arrow(widths: tuple[int, int]) -> str:
    return " → ".join(map(str, widths))


def _streamed(block: tuple[Tensor, Tensor], n_rows: int) -> PairMoments:
    moments = PairMoments(block[0].shape[1], block[1].shape[1])
    while moments.n < n_rows:
        n = min(len(block[0]), n_rows - moments.n)
        moments.update(block[0][:n], block[1][:n])
    return moments


def _streamed_ridge(block: tuple[Tensor, Tensor], n_rows: int) -> AffineMap:
    moments = _streamed(block, n_rows)
    return RidgeFitter().fit(moments, moments)


def _linear_pairs(
    n_rows: int, d_source: int, d_target: int, generator: torch.Generator
) -> tuple[Float[Tensor, "row d_source"], Float[Tensor, "row d_target"]]:
    source = torch.randn(n_rows, d_source, generator=generator)
    weight = torch.randn(d_source, d_target, generator=generator) / d_source**0.5
    noise = torch.randn(n_rows, d_target, generator=generator)
    return source, source @ weight + noise


def _moments(
    source: Float[Tensor, "row d_source"], target: Float[Tensor, "row d_target"]
) -> PairMoments:
    moments = PairMoments(source.shape[1], target.shape[1])
    moments.update(source, target)
    return moments


def _bare_algebra(train: PairMoments, selection: PairMoments) -> Tensor:
    """Does what a ridge fit cannot do without: one decomposition and the products."""
    eigenvalues, basis = torch.linalg.eigh(train.source_scatter)
    rotated = basis.T @ train.cross_scatter
    error = rotated @ rotated.T * (basis.T @ selection.source_scatter @ basis)
    score = (rotated * (basis.T @ selection.cross_scatter)).sum() + error.sum()
    weight: Tensor = basis @ (rotated / (eigenvalues + score)[:, None])
    return weight


def _moments_error(found: PairMoments, source: Tensor, target: Tensor) -> float:
    x, y = source.double() - source.double().mean(0), target.double() - target.double().mean(0)
    return max(_relative(found.source_scatter, x.T @ x), _relative(found.cross_scatter, x.T @ y))


def _ridge_error(found: AffineMap, train: PairMoments) -> float:
    mean_eigenvalue = train.source_scatter.trace() / train.d_source
    penalty = found.details["strength"] * mean_eigenvalue * torch.eye(train.d_source).double()
    expected = torch.linalg.solve(train.source_scatter + penalty, train.cross_scatter)
    return _relative(found.weight.double(), expected)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def stream_growth(d_source: int, d_target: int, n_batches: int) -> float:
    """Returns by how much a new process grows while it takes the moments of a stream of pairs.

    Args:
        d_source: Width of the source activations.
        d_target: Width of the target activations.
        n_batches: Batches of 1,024 pairs.

    Returns:
        Growth of the largest resident size, in kilobytes on Linux.
    """
    command = [sys.executable, "-c", _STREAM, *map(str, (d_source, d_target, n_batches))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
