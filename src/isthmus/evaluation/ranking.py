"""How well scores rank positive above negative ones, with a bootstrap over contents."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.stats import norm

from isthmus.core.errors import DataError, NonFiniteError, ShapeError
from isthmus.evaluation.intervals import (
    Contents,
    Interval,
    count_contents,
    paired_bootstrap,
    resample_weights,
)


def auroc_interval(
    positive: Float[np.ndarray, " question"],
    negative: Float[np.ndarray, "question asked"],
    *,
    contents: Contents = (),
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Returns the area under the ROC curve with its percentile bootstrap interval over questions.

    The share of pairs of a positive and a negative score in which the positive one is larger; ties
    count half. A question is resampled with all of its scores and with all that share its content.
    Where all pairs are ranked alike every resample is, too: the end of `rank_bound` stands there.

    Args:
        positive: Score of every question in its positive form.
        negative: Scores of the same questions in their negative forms, at least one per question.
        contents: What every question is about; when not given no two share a content.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.

    Returns:
        From 0 to 1; .5 is chance.

    Raises:
        ShapeError: If the questions are not equally many.
        DataError: If there is none.
        NonFiniteError: If a score is NaN or infinite.
    """
    if len(positive) != len(negative):
        raise ShapeError(
            f"{len(positive)} positive and {len(negative)} negative rows: give both forms of every "
            "question"
        )
    _require_scores(positive, negative)
    # wins[i, j]: how often question i's positive form beats question j's negative forms.
    higher = positive[:, None, None] > negative[None]
    equal = positive[:, None, None] == negative[None]
    wins = (higher + 0.5 * equal).mean(-1)
    n = len(positive)

    def area(rows: Int[np.ndarray, "resample drawn"]) -> Float[np.ndarray, " resample"]:
        counts = np.stack([np.bincount(row, minlength=n) for row in rows]).astype(np.float64)
        # Contents may have unequally many questions.
        n_pairs = counts.sum(-1) ** 2
        found: Float[np.ndarray, " resample"] = ((counts @ wins) * counts).sum(-1) / n_pairs
        return found

    found = paired_bootstrap(area, n, contents=contents, n_resamples=n_resamples, seed=seed)
    n_contents = count_contents(contents, n)
    return _opened(found, n_contents, n_contents)


def unpaired_auroc_interval(
    positive: Float[np.ndarray, " positive_prompt"],
    negative: Float[np.ndarray, " negative_prompt"],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Returns the area under the ROC curve of prompts that are no pairs, with its interval.

    As `auroc_interval`, but each class is resampled by itself.

    Args:
        positive: Scores of the positive class.
        negative: Scores of the negative class, any number.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.

    Returns:
        From 0 to 1; .5 is chance.

    Raises:
        DataError: If a class is empty.
        NonFiniteError: If a score is NaN or infinite.
    """
    _require_scores(positive, negative)
    higher = positive[:, None] > negative[None]
    wins = higher + 0.5 * (positive[:, None] == negative[None])
    of_positive = resample_weights(len(positive), n_resamples, seed=seed)
    of_negative = resample_weights(len(negative), n_resamples, seed=seed + 1)
    areas = ((of_positive @ wins) * of_negative).sum(axis=1)
    low, high = np.quantile(areas, (0.025, 0.975))
    # Weights that add up to 1 but for rounding may leave the range of an area.
    found = Interval(float(wins.mean()), max(float(low), 0.0), min(float(high), 1.0))
    return _opened(found, len(positive), len(negative))


def rank_bound(n_positive: int, n_negative: int, *, level: float = 0.95) -> float:
    """Returns how small an area may be of which the scores at hand show nothing but 1.

    The least θ with (1 - θ)² ≤ z² V(θ), where
    V(θ) = θ (1 - θ) (1 + M ((1 - θ) / (2 - θ) + θ / (1 + θ))) / (m n), M = (m + n) / 2 - 1.

    Source: Newcombe 2006, Statistics in Medicine 25(4), method 5, with the variance of Hanley and
    McNeil 1982, Radiology 143.

    Args:
        n_positive: How many positive scores there are, at least 1.
        n_negative: How many negative ones.
        level: Confidence of the two-sided interval, above 0 and below 1.

    Returns:
        Above 0 and below 1.
    """
    z, m = float(norm.ppf((1 + level) / 2)), (n_positive + n_negative) / 2 - 1

    def surplus(area: float) -> float:
        spread = 1 + m * ((1 - area) / (2 - area) + area / (1 + area))
        return 1 - area - z**2 * area * spread / (n_positive * n_negative)

    return float(brentq(surplus, 0.0, 1.0))


def _opened(found: Interval, n_positive: int, n_negative: int) -> Interval:
    """Opens an interval that is a point because all pairs are ranked alike."""
    if found.value == 1:
        return Interval(1.0, min(found.low, rank_bound(n_positive, n_negative)), 1.0)
    if found.value == 0:
        return Interval(0.0, 0.0, max(found.high, 1 - rank_bound(n_positive, n_negative)))
    return found


def _require_scores(*classes: Float[np.ndarray, "..."]) -> None:
    if not all(scores.size for scores in classes):
        raise DataError("no scores to rank: give at least one question in both forms")
    if not all(np.isfinite(scores).all() for scores in classes):
        raise NonFiniteError("a score is NaN or infinite: look for the prompts that gave it")
