"""Chooses one of several maps by held-out score, the simplest that is as good as the best.

1. Every map's squared errors and the targets' variation are summed per held-out text, for tokens of
   one text are not independent. A coordinate that varies more than `MOST_VARIED` times as much as
   the median one counts as if it varied so much: else massive ones alone would choose.
2. A map's score is R² = 1 - Σ error / Σ variation; texts give its standard error.
3. One standard error rule: of the maps whose score lies at most one standard error of the
   difference below the best, and at most `MOST_GIVEN_UP`, the first in the order of simplicity.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError
from isthmus.maps.base import ActivationMap
from isthmus.maps.rows import PairedRows

MOST_GIVEN_UP = 0.02
"""Most R² that is given up for a simpler map, however large the standard error is."""

_ROUNDING = 1e-6
"""Differences of R² below this are none, however small the standard error is."""

MOST_VARIED = 100.0
"""Most variance of a coordinate, in units of the median one's, that counts in a choice."""

_ROWS_PER_BLOCK = 32


@dataclass(frozen=True, eq=False)
class TextErrors:
    """What a map leaves unexplained, text by text.

    Attributes:
        error: Σ |y - f(x)|² per text, float64, massive coordinates weighed down.
        variation: Σ |y - ȳ|² per text about the mean of all, float64, weighed alike; the same for
            every map.
    """

    error: Float[Tensor, " text"]
    variation: Float[Tensor, " text"]

    @property
    def r2(self) -> float:
        """1 - Σ error / Σ variation."""
        return 1.0 - float(self.error.sum() / self.variation.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of R² over texts."""
        ratio = self.error.sum() / self.variation.sum()
        return _standard_error(self.error - ratio * self.variation, self.variation)

    def standard_error_to(self, other: "TextErrors") -> float:
        """Returns the standard error of the difference of two scores on the same texts."""
        gap = self.error - other.error
        ratio = gap.sum() / self.variation.sum()
        return _standard_error(gap - ratio * self.variation, self.variation)


def _standard_error(spread: Tensor, variation: Tensor) -> float:
    """Standard error of a ratio of sums, to first order, over texts."""
    n = len(spread)
    return float((n / (n - 1) * spread.square().sum()).sqrt() / variation.sum())


def errors_by_text(fitted: ActivationMap, held_out: PairedRows) -> TextErrors:
    """Measures a map on held-out pairs, text by text.

    Args:
        fitted: The map.
        held_out: Pairs that it was not fitted on; blocks of 32 rows stand for texts when these were
            not counted.

    Returns:
        Sums per text; texts without a pair are left out.

    Raises:
        FitError: If there are fewer than two texts with pairs, or the targets never vary.
    """
    n_rows = len(held_out.target)
    counts = list(held_out.n_per_text) or [
        min(_ROWS_PER_BLOCK, n_rows - start) for start in range(0, n_rows, _ROWS_PER_BLOCK)
    ]
    lengths = [count for count in counts if count]
    mean = held_out.target.double().mean(0)
    weights = _coordinate_weights(held_out.target.double().var(0, correction=0))
    error, variation = [], []
    pieces = zip(held_out.source.split(lengths), held_out.target.split(lengths), strict=True)
    for x, y in pieces:
        error.append((y.double() - fitted(x).to(y.device).double()).square().sum(0) @ weights)
        variation.append((y.double() - mean).square().sum(0) @ weights)
    if len(lengths) < 2 or not float(torch.stack(variation).sum()) > 0:
        raise FitError(
            f"choosing a map needs at least 2 held-out texts with different targets, got "
            f"{len(lengths)}: give at least 40 texts"
        )
    return TextErrors(torch.stack(error), torch.stack(variation))


def _coordinate_weights(variances: Float[Tensor, " d_target"]) -> Float[Tensor, " d_target"]:
    """Returns min(1, `MOST_VARIED` · median / variance); 1 where nothing is massive."""
    varying = variances[variances > 0]
    if not len(varying):
        return torch.ones_like(variances)
    most = MOST_VARIED * varying.quantile(0.5)
    weights: Tensor = most / variances.clamp(min=most)
    return weights


@dataclass(frozen=True)
class MapScore:
    """How a candidate did.

    Attributes:
        name: Which map.
        r2: Held-out R² on the texts that choose, massive coordinates weighed down.
        standard_error: Over these texts.
        below_best: By how much it lies below the best.
        standard_error_to_best: Standard error of that difference.
        verdict: `chosen`, or why it was not.
    """

    name: str
    r2: float
    standard_error: float
    below_best: float
    standard_error_to_best: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return asdict(self)


def choose_map(
    errors: Mapping[str, TextErrors], simplest_first: Sequence[str]
) -> tuple[str, tuple[MapScore, ...]]:
    """Chooses the simplest map that is as good as the best.

    Source: Breiman, Friedman, Olshen and Stone 1984, "Classification and regression trees", for the
    one standard error rule; the error is that of the difference, as all maps see the same texts.

    Args:
        errors: Candidates by name, measured on the same texts.
        simplest_first: Every candidate's name, in order of simplicity.

    Returns:
        The name, and every candidate's score with its verdict, best first.

    Raises:
        FitError: If there is no candidate with a finite score.
    """
    usable = {name: one for name, one in errors.items() if math.isfinite(one.r2)}
    if not usable:
        raise FitError(f"none of the maps {', '.join(errors)} has a score: give more texts")
    best = max(usable, key=lambda name: usable[name].r2)
    gaps = {name: usable[best].r2 - one.r2 for name, one in usable.items()}
    slack = {name: one.standard_error_to(usable[best]) for name, one in usable.items()}
    as_good = [n for n in usable if gaps[n] <= max(_ROUNDING, min(slack[n], MOST_GIVEN_UP))]
    chosen = min(as_good, key=list(simplest_first).index)

    def verdict(name: str) -> str:
        if name == chosen:
            return "chosen"
        if name in as_good:
            return f"as good, but {chosen} is simpler"
        return f"worse than {best}"

    ranked = sorted(usable, key=lambda name: gaps[name])
    return chosen, tuple(
        MapScore(
            name,
            usable[name].r2,
            usable[name].standard_error,
            gaps[name],
            slack[name],
            verdict(name),
        )
        for name in ranked
    )
