"""Confidence intervals: Wilson for rates, the paired percentile bootstrap for everything else.

Rows may have a content that they share with others, as several phrasings of one request do. They
then tell about as much as one row: contents are drawn with all of their rows, and a rate counts for
as many trials as its contents' differences allow.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest, norm

from isthmus.core.errors import ConfigError, DataError, NonFiniteError

Statistic = Callable[[Int[np.ndarray, "resample row"]], Float[np.ndarray, " resample"]]
"""A number per row of drawn indices; NaN where it is undefined."""

Contents = Sequence[str | None]
"""What every row is about; None for a row that is like no other."""

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


def rate_interval(
    hits: Sequence[bool], contents: Contents = (), *, level: float = 0.95
) -> Interval:
    """Returns a rate with the Wilson interval of as many trials as its rows are worth.

    With contents of m_g rows and s_g hits, p = Σ s_g / n varies by v = Σ (s_g - p m_g)² / n², so
    that n rows are worth p (1 - p) / v independent ones, at most n. Near 0 and 1 so few rows differ
    that v says little: one content of hits and one of misses, of mean size, are added for it, and
    the number is scaled so that contents which always agree count once each.

    Source: Korn and Graubard 1998, Survey Methodology 24, for the effective number; Dean and Pagano
    2015, Journal of Survey Statistics and Methodology 3, for Wilson's interval with it.

    Args:
        hits: Of every row whether it happened; at least one.
        contents: What every row is about; when not given no two rows share a content.
        level: Confidence, above 0 and below 1.

    Returns:
        The rate and its interval, within 0 to 1.
    """
    n, successes = len(hits), sum(hits)
    groups = _groups(contents, n)
    if groups is None:
        return wilson_interval(successes, n, level)
    _require_level(level)
    rate, numbers = successes / n, np.asarray(hits, dtype=np.float64)
    mean_size = n / len(groups)
    sizes = np.array([*map(len, groups), mean_size, mean_size])
    hits_of = np.array([*(numbers[rows].sum() for rows in groups), mean_size, 0.0])
    p = hits_of.sum() / sizes.sum()
    surplus = hits_of - p * sizes
    n_alone = float(p * (1 - p) * sizes.sum() ** 2 / (surplus @ surplus))
    n_worth = min(float(n), n_alone * len(groups) / len(sizes))
    z = float(norm.ppf((1 + level) / 2))
    middle = rate + z**2 / (2 * n_worth)
    half = z * math.sqrt(rate * (1 - rate) / n_worth + z**2 / (4 * n_worth**2))
    scale = 1 + z**2 / n_worth
    # Exactly 0 and 1 where they are meant: the difference leaves 1e-17 behind.
    low = max((middle - half) / scale, 0.0) if successes else 0.0
    high = min((middle + half) / scale, 1.0) if successes < n else 1.0
    return Interval(rate, low, high)


def paired_bootstrap(
    statistic: Statistic,
    n: int,
    *,
    contents: Contents = (),
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns a statistic with its percentile bootstrap interval over rows.

    One resample draws n of the n rows with replacement, for all quantities of a row at once, so
    that what belongs to one prompt stays together; of rows that share contents it draws contents,
    as many as there are, each with all of its rows. Two statistics of the same n and seed see the
    same resamples. Resamples in which the statistic is undefined are left out.

    Source: Efron 1979, Annals of Statistics 7.

    Args:
        statistic: Takes row indices [resample row] and returns one number per resample; NaN where
            it is undefined.
        n: How many rows there are, at least 1.
        contents: What every row is about; when not given no two rows share a content.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.
        level: Confidence, above 0 and below 1.

    Returns:
        The statistic of the rows as they are and the central interval of the resamples; undefined
        if the statistic is.
    """
    _require_level(level)
    found = resampled(statistic, n, contents=contents, n_resamples=n_resamples, seed=seed)
    value, others = float(found[0]), found[1:][~np.isnan(found[1:])]
    if math.isnan(value) or not others.size:
        return Interval.undefined()
    tail = (1 - level) / 2
    low, high = np.quantile(others, (tail, 1 - tail))
    return Interval(value, float(low), float(high))


def resampled(
    statistic: Statistic,
    n: int,
    *,
    contents: Contents = (),
    n_resamples: int = 2000,
    seed: int = 0,
) -> Float[np.ndarray, " resample"]:
    """Returns a statistic of the rows as they are, then of every resample.

    Statistics of the same n, contents and seed see the same resamples in the same order.

    Args:
        statistic: Takes row indices [resample row] and returns one number per resample; NaN where
            it is undefined.
        n: How many rows there are, at least 1.
        contents: What every row is about; when not given no two rows share a content.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.

    Returns:
        One number more than resamples.

    Raises:
        DataError: If there is no row.
        ConfigError: If there is no resample.
    """
    if n < 1:
        raise DataError(f"{n} rows to resample: expected at least 1")
    if n_resamples < 1:
        raise ConfigError(f"{n_resamples} resamples: expected at least 1, better 2000")
    groups = _groups(contents, n)
    drawn = (
        _resamples(n, n_resamples, seed)
        if groups is None
        else _resamples_of_groups(groups, n_resamples, seed)
    )
    found = [statistic(np.arange(n)[None]), *(statistic(rows) for rows in drawn)]
    values: Float[np.ndarray, " resample"] = np.concatenate(found)
    return values


def mean_interval(
    values: Float[np.ndarray, " row"],
    *,
    contents: Contents = (),
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns a mean with its percentile bootstrap interval.

    Args:
        values: One finite number per prompt, at least one.
        contents: What every prompt is about; when not given no two share a content.
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
        contents=contents,
        n_resamples=n_resamples,
        seed=seed,
        level=level,
    )


def resample_weights(
    n: int, n_resamples: int, *, contents: Contents = (), seed: int = 0
) -> Float[np.ndarray, "resample row"]:
    """Returns how much every row counts in the mean of every resample.

    Draws what `paired_bootstrap` draws, rows or contents with all of their rows, but as weights,
    for statistics that are made of means.

    Args:
        n: How many rows there are, at least 1.
        n_resamples: How many resamples.
        contents: What every row is about; when not given no two rows share a content.
        seed: Which resamples.

    Returns:
        At least 0, and 1 together in every resample.
    """
    rng = np.random.default_rng(seed)
    groups = _groups(contents, n)
    if groups is None:
        drawn: Float[np.ndarray, "resample row"] = rng.multinomial(n, [1 / n] * n, n_resamples) / n
        return drawn
    counts = rng.multinomial(len(groups), [1 / len(groups)] * len(groups), n_resamples)
    group_of = np.empty(n, dtype=np.int64)
    for number, rows in enumerate(groups):
        group_of[rows] = number
    n_drawn = counts[:, group_of].astype(np.float64)
    weights: Float[np.ndarray, "resample row"] = n_drawn / n_drawn.sum(axis=1, keepdims=True)
    return weights


def count_contents(contents: Contents, n: int) -> int:
    """Returns how many contents n rows have; a row without one is a content by itself.

    Args:
        contents: What every row is about; when not given no two rows share a content.
        n: How many rows there are.

    Returns:
        From 1 to n; what can be drawn independently.
    """
    groups = _groups(contents, n)
    return n if groups is None else len(groups)


def _resamples(n: int, n_resamples: int, seed: int) -> Iterator[Int[np.ndarray, "resample row"]]:
    rng = np.random.default_rng(seed)
    chunk = max(1, _INDICES_PER_CHUNK // n)
    for first in range(0, n_resamples, chunk):
        yield rng.integers(0, n, size=(min(chunk, n_resamples - first), n))


def _groups(contents: Contents, n: int) -> list[Int[np.ndarray, " _"]] | None:
    """Returns the rows of every content, or None where no two rows share one."""
    if not contents:
        return None
    if len(contents) != n:
        raise DataError(f"{len(contents)} contents of {n} rows: expected one of each")
    rows: dict[object, list[int]] = {}
    for index, content in enumerate(contents):
        rows.setdefault(index if content is None else content, []).append(index)
    return None if len(rows) == n else [np.array(one) for one in rows.values()]


def _resamples_of_groups(
    groups: Sequence[Int[np.ndarray, " _"]], n_resamples: int, seed: int
) -> Iterator[Int[np.ndarray, "resample row"]]:
    """Yields resamples of contents; those with equally many rows come together."""
    sizes = np.array([len(rows) for rows in groups])
    members = np.zeros((len(groups), sizes.max()), dtype=np.int64)
    for row, rows in zip(members, groups, strict=True):
        row[: len(rows)] = rows
    is_member = np.arange(sizes.max()) < sizes[:, None]
    for drawn in _resamples(len(groups), n_resamples, seed):
        n_rows = sizes[drawn].sum(axis=1)
        for n in np.unique(n_rows):
            some = drawn[n_rows == n]
            yield members[some][is_member[some]].reshape(len(some), n)


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"confidence level {level}: expected a number such as 0.95")
