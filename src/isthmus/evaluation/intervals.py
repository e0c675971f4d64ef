"""Confidence intervals: Wilson for rates, the paired percentile bootstrap for everything else."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest

from isthmus.core.errors import ConfigError, DataError, NonFiniteError

Statistic = Callable[[Int[np.ndarray, "resample row"]], Float[np.ndarray, " resample"]]
"""A number per row of drawn indices; NaN where it is undefined."""

# Bounds the memory of one chunk of resamples to a few arrays of eight million bytes.
_INDICES_PER_CHUNK = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval.

    Attributes:
        value: The number on the data as they are; NaN when it is undefined.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def is_defined(self) -> bool:
        """Whether there is a number at all."""
        return not math.isnan(self.value)

    @classmethod
    def undefined(cls) -> "Interval":
        """Returns the interval of a number that these data do not define."""
        return cls(math.nan, math.nan, math.nan)


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Returns a rate with its Wilson score interval, which is honest near 0 and 1.

    (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n), with p = successes / n.

    Source: Wilson 1927, Journal of the American Statistical Association 22.

    Args:
        successes: How often it happened, from 0 to n.
        n: How often it could have happened, at least 1.
        level: Confidence, above 0 and below 1.

    Returns:
        The rate and its interval, within 0 to 1.

    Raises:
        DataError: If there is no trial, or successes are not from 0 to n.
    """
    _require_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} of {n}: expected at least one trial and 0 to n successes")
    bounds = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high))


def paired_bootstrap(
    statistic: Statistic,
    n: int,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns a statistic with its percentile bootstrap interval over rows.

    One resample draws n of the n rows with replacement, for all quantities of a row at once, so
    that what belongs to one prompt stays together. Two statistics of the same n and seed see the
    same resamples. Resamples in which the statistic is undefined are left out.

    Source: Efron 1979, Annals of Statistics 7.

    Args:
        statistic: Takes row indices [resample row] and returns one number per resample; NaN where
            it is undefined.
        n: How many rows there are, at least 1.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.
        level: Confidence, above 0 and below 1.

    Returns:
        The statistic of the rows as they are and the central interval of the resamples; undefined
        if the statistic is.

    Raises:
        DataError: If there is no row.
        ConfigError: If there is no resample.
    """
    _require_level(level)
    if n < 1:
        raise DataError(f"{n} rows to resample: expected at least 1")
    if n_resamples < 1:
        raise ConfigError(f"{n_resamples} resamples: expected at least 1, better 2000")
    value = float(statistic(np.arange(n)[None])[0])
    if math.isnan(value):
        return Interval.undefined()
    resampled = np.concatenate([statistic(rows) for rows in _resamples(n, n_resamples, seed)])
    resampled = resampled[~np.isnan(resampled)]
    if not resampled.size:
        return Interval.undefined()
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Interval(value, float(low), float(high))


def mean_interval(
    values: Float[np.ndarray, " row"],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns a mean with its percentile bootstrap interval.

    Args:
        values: One finite number per prompt, at least one.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.
        level: Confidence, above 0 and below 1.

    Returns:
        The mean and its interval.

    Raises:
        NonFiniteError: If a value is NaN or infinite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise NonFiniteError("a mean over NaN or infinity: look for the prompts that gave it")
    return paired_bootstrap(
        lambda rows: numbers[rows].mean(axis=1),
        len(numbers),
        n_resamples=n_resamples,
        seed=seed,
        level=level,
    )


def _resamples(n: int, n_resamples: int, seed: int) -> Iterator[Int[np.ndarray, "resample row"]]:
    rng = np.random.default_rng(seed)
    chunk = max(1, _INDICES_PER_CHUNK // n)
    for first in range(0, n_resamples, chunk):
        yield rng.integers(0, n, size=(min(chunk, n_resamples - first), n))


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"confidence level {level}: expected a number such as 0.95")
