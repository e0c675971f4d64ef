"""Times ways of doing the same thing turn by turn, and compares them by their ratio.

1. Every round runs each variant once; every second round runs them in reverse order, so that
   neither a slow moment of the machine nor the neighbour in the order favours one of them.
2. A ratio is taken within a round, and the median over rounds is what is reported.
3. Its interval is that of the median, free of any assumption on the distribution.
"""

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from isthmus.core.errors import ConfigError

Variant = Callable[[], Any]
"""One way of doing the work of a case."""

Kind = Literal["time", "rate", "memory"]
"""Seconds or bytes (lower is better), or work per second (higher is better)."""

Verdict = Literal["within", "above", "open", ""]
"""Whether the whole interval lies on one side of the limit; empty without a limit."""

_FEWEST = 6  # rounds whose range is a 95 % interval of the median


@dataclass(frozen=True)
class Check:
    """Values that a case must get right for its timings to mean anything.

    Attributes:
        what: What is compared with what.
        difference: Computes both and returns how far they are apart.
        tolerance: Largest difference that counts as equal; 0 for the same bits.
    """

    what: str
    difference: Callable[[], float]
    tolerance: float = 0.0


@dataclass(frozen=True)
class Pair:
    """Two variants of a case whose ratio is reported.

    Attributes:
        measured: Name of the variant above the line.
        against: Name of the variant below the line.
        limit: Largest ratio that the project promises, if it promises one.
        kind: What the ratio is one of.
        work: Operations of both variants, for rates.
    """

    measured: str
    against: str
    limit: float | None = None
    kind: Kind = "time"
    work: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """Variants that are run turn by turn, and what is said about them.

    Attributes:
        group: Heading under which it is shown.
        name: What is done.
        variants: Ways of doing it, by name.
        pairs: Which of them are compared.
        checks: Values that must agree.
        returns_cost: Whether a variant returns what it cost (bytes) instead of being timed.
        n_repeats: Rounds, where they differ from those of the whole run.
        n_warm_up: Runs of each variant that do not count.
    """

    group: str
    name: str
    variants: Mapping[str, Variant]
    pairs: tuple[Pair, ...]
    checks: tuple[Check, ...] = ()
    returns_cost: bool = False
    n_repeats: int | None = None
    n_warm_up: int = 1


@dataclass(frozen=True)
class Ratio:
    """Ratios of all rounds, summarised.

    Attributes:
        median: Median.
        interval: 95 % interval of the median; with fewer than six rounds the range.
        range: Smallest and largest.
        n: Rounds.
    """

    median: float
    interval: tuple[float, float]
    range: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Comparison:
    """One reported ratio.

    Attributes:
        group: Heading.
        case: What was done.
        pair: What was compared.
        ratio: By how much they differ.
    """

    group: str
    case: str
    pair: Pair
    ratio: Ratio

    @property
    def verdict(self) -> Verdict:
        """Says on which side of the limit the interval lies; `open` if on both or not known."""
        if self.pair.limit is None:
            return ""
        low, high = self.ratio.interval
        if self.ratio.n < _FEWEST and self.pair.kind != "memory":
            return "open"
        if high <= self.pair.limit:
            return "within"
        return "above" if low > self.pair.limit else "open"


def wall_seconds(variant: Variant) -> float:
    """Returns the seconds that pass while a variant runs, with the garbage collector held off."""
    return _seconds(variant, time.perf_counter)


def processor_seconds(variant: Variant) -> float:
    """Returns the processor time of one run, all threads and child processes together.

    Other programs hardly change it, but threads that wait for each other add to it: use one thread.
    """
    return _seconds(variant, _processor_time)


def _processor_time() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _seconds(variant: Variant, clock: Callable[[], float]) -> float:
    gc.collect()
    gc.disable()
    try:
        start = clock()
        variant()
        return clock() - start
    finally:
        gc.enable()


def interleaved_costs(
    variants: Mapping[str, Variant],
    n_repeats: int,
    cost: Callable[[Variant], float] = wall_seconds,
    *,
    n_warm_up: int = 1,
) -> dict[str, tuple[float, ...]]:
    """Runs variants turn by turn, after some runs of each that do not count.

    Args:
        variants: What is run, by name.
        n_repeats: Rounds, at least 1.
        cost: Runs a variant and returns what that cost.
        n_warm_up: Runs of each variant that do not count.

    Returns:
        Costs of every variant, one per round.

    Raises:
        ConfigError: If `n_repeats` is below 1.
    """
    if n_repeats < 1:
        raise ConfigError(f"{n_repeats} repeats, expected at least 1: use --repeats 15")
    names = list(variants)
    for name in names * n_warm_up:
        cost(variants[name])
    costs: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(n_repeats):
        for name in names if round_index % 2 == 0 else reversed(names):
            costs[name].append(cost(variants[name]))
    return {name: tuple(found) for name, found in costs.items()}


def compare(case: Case, pair: Pair, costs: Mapping[str, Sequence[float]]) -> Comparison:
    """Summarises one pair: cost over cost, or for rates work per second over work per second.

    Args:
        case: What was run.
        pair: Two of its variants.
        costs: What `interleaved_costs` returned.

    Returns:
        The ratio within each round, as median, interval and range.
    """
    rounds = zip(costs[pair.measured], costs[pair.against], strict=True)
    ratios = [measured / against for measured, against in rounds]
    if pair.kind == "rate":
        ratios = [pair.work[0] / pair.work[1] / ratio for ratio in ratios]
    return Comparison(case.group, case.name, pair, summarise(ratios))


def summarise(values: Sequence[float]) -> Ratio:
    """Returns median, interval of the median and range of at least one value.

    The interval reaches from the j-th smallest to the j-th largest value, with the largest j for
    which P(Binomial(n, 1/2) < j) is at most 2.5 %.

    Source: Conover 1999, "Practical Nonparametric Statistics", section 3.2.

    Args:
        values: In any order.

    Returns:
        The summary.
    """
    ranked = sorted(values)
    n = len(ranked)
    below, j = 0.0, 0
    while (below := below + math.comb(n, j) / 2**n) <= 0.025:
        j += 1
    outer = max(j, 1) - 1
    interval = (ranked[outer], ranked[n - 1 - outer])
    return Ratio(statistics.median(ranked), interval, (ranked[0], ranked[-1]), n)
