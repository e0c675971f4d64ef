"""Held-out quality of maps, from moments for affine maps and from rows for any map.

1. SST = Σ |y - ȳ|² about the mean ȳ of the held-out targets themselves.
2. SSE of an affine map follows from the moments: with W its weight and o its offset at the held-out
   mean, SSE = tr Syy - 2 tr(Wᵀ Sxy) + tr(Wᵀ Sxx W) + n |o|².
3. FVU = SSE / SST and R² = 1 - FVU, all target coordinates pooled.
4. The same for every target coordinate by itself: their median does not hang on a few coordinates
   of massive activations, which alone bring the pooled R² close to 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError, NonFiniteError, ShapeError
from isthmus.maps.base import ActivationMap, AffineMap, MapQuality, require_width
from isthmus.maps.moments import PairMoments
from isthmus.maps.rows import PairedRows, Pairs


def fraction_unexplained(
    weight: Float[Tensor, "d_source d_target"],
    source_mean: Float[Tensor, " d_source"],
    target_mean: Float[Tensor, " d_target"],
    held_out: PairMoments,
) -> float:
    """Measures the affine map (x - source_mean) · weight + target_mean on held-out pairs.

    Refuses other widths (`ShapeError`), fewer than two pairs and targets that never vary
    (`FitError`).

    Args:
        weight: Linear part, float64.
        source_mean: Point that maps to `target_mean`, float64.
        target_mean: Image of `source_mean`, float64.
        held_out: Moments of pairs that the map was not fitted on.

    Returns:
        SSE / SST, at least 0.
    """
    total = require_scorable(weight.shape[0], weight.shape[1], held_out)
    errors = _squared_errors(weight, source_mean, target_mean, held_out)
    # For a perfect map the terms cancel up to rounding, which may leave a tiny negative sum.
    return max(float(errors.sum()), 0.0) / total


def _squared_errors(
    weight: Tensor, source_mean: Tensor, target_mean: Tensor, held_out: PairMoments
) -> Float[Tensor, " d_target"]:
    offset = (held_out.source_mean - source_mean) @ weight + target_mean - held_out.target_mean
    errors: Tensor = (
        held_out.target_scatter
        - 2 * (weight * held_out.cross_scatter).sum(0)
        + (weight * (held_out.source_scatter @ weight)).sum(0)
        + held_out.n * offset.square()
    )
    return errors


def require_scorable(d_source: int, d_target: int, held_out: PairMoments) -> float:
    """Refuses pairs on which a map cannot be scored.

    Refuses fewer than two pairs and targets that never vary (`FitError`).

    Args:
        d_source: Width that the map reads.
        d_target: Width that it writes.
        held_out: Moments of the pairs.

    Returns:
        Their SST.

    Raises:
        ShapeError: If the widths differ.
    """
    if (d_source, d_target) != (held_out.d_source, held_out.d_target):
        raise ShapeError(
            f"a map {d_source} → {d_target} cannot be scored on pairs of widths "
            f"{held_out.d_source} → {held_out.d_target}: read them from the sites of the map"
        )
    return _require_total(float(held_out.target_total), held_out.n)


def held_out_quality(fitted: AffineMap, held_out: PairMoments, n_train: int) -> MapQuality:
    """Measures an affine map on held-out pairs of which only the moments are known.

    Refuses other widths (`ShapeError`), fewer than two pairs and targets that never vary
    (`FitError`).

    Args:
        fitted: The map.
        held_out: Moments of pairs used neither for fitting nor for choosing a strength.
        n_train: Pairs that the map was fitted on, for the record.

    Returns:
        R² and FVU, pooled over the target coordinates.
    """
    like = held_out.source_mean
    require_scorable(fitted.d_source, fitted.d_target, held_out)
    errors = _squared_errors(
        fitted.weight.to(like), fitted.source_mean.to(like), fitted.target_mean.to(like), held_out
    )
    return _quality(errors, held_out.target_scatter, (n_train, held_out.n))


def held_out_quality_on_rows(
    fitted: ActivationMap,
    source: Float[Tensor, "row d_source"],
    target: Float[Tensor, "row d_target"],
    n_train: int,
) -> MapQuality:
    """Measures any map on held-out pairs.

    Refuses other widths (`ShapeError`), fewer than two pairs and targets that never vary
    (`FitError`).

    Args:
        fitted: The map.
        source: Held-out source activations; left unchanged.
        target: Their target activations, row by row; left unchanged.
        n_train: Pairs that the map was fitted on, for the record.

    Returns:
        R² and FVU, pooled over the target coordinates.

    Raises:
        ShapeError: If the numbers of rows differ.
        NonFiniteError: If an activation is NaN or infinite.
    """
    if len(source) != len(target):
        raise ShapeError(
            f"{len(source)} source rows and {len(target)} target rows are not pairs: "
            "align the tokens first"
        )
    return held_out_quality_on_pairs(fitted, PairedRows(source, target), n_train)


def held_out_quality_on_pairs(fitted: ActivationMap, held_out: Pairs, n_train: int) -> MapQuality:
    """Measures any map on held-out pairs that are read twice, a batch at a time.

    Refuses what `held_out_quality_on_rows` refuses.

    Args:
        fitted: The map.
        held_out: Pairs that it was not fitted on.
        n_train: Pairs that the map was fitted on, for the record.

    Returns:
        R² and FVU, pooled over the target coordinates.

    Raises:
        NonFiniteError: If an activation is NaN or infinite.
    """
    sums = torch.zeros(held_out.d_target, dtype=torch.float64)
    for _, y in held_out.batches():
        require_width(y, fitted.d_target, f"the output of the {fitted.method} map")
        sums = sums.to(y.device) + y.double().sum(0)
    mean = sums / max(held_out.n_rows, 1)
    totals, errors = torch.zeros_like(sums), torch.zeros_like(sums)
    for x, y in held_out.batches():
        totals += (y.double() - mean).square().sum(0)
        errors += (y.double() - fitted(x).to(y.device).double()).square().sum(0)
    if not torch.isfinite(totals + errors).all():
        raise NonFiniteError(
            "the held-out activations hold NaN or infinity: "
            "load the model in bfloat16 or float32, or drop the texts that cause it"
        )
    return _quality(errors, totals, (n_train, held_out.n_rows))


def _quality(
    errors: Float[Tensor, " d_target"], totals: Float[Tensor, " d_target"], n: tuple[int, int]
) -> MapQuality:
    """Makes a quality of the SSE and SST of every target coordinate."""
    total = _require_total(float(totals.sum()), n[1])
    fvu = max(float(errors.sum()), 0.0) / total
    varies = totals > 0
    middle = float((errors[varies].clamp(min=0) / totals[varies]).quantile(0.5))
    return MapQuality(1.0 - fvu, fvu, *n, r2_median_coordinate=1.0 - middle)


def _require_total(total: float, n: int) -> float:
    if n < 2 or total <= 0:
        raise FitError(
            f"quality needs at least 2 held-out pairs with different targets, got {n} pairs with "
            f"total variation {total:g}: hold out more texts"
        )
    return total
