"""How well scores rank positive above negative ones, with a bootstrap over contents."""

import numpy as np
from jaxtyping import Float, Int

from isthmus.core.errors import DataError, NonFiniteError, ShapeError
from isthmus.evaluation.intervals import (
    Contents,
    Interval,
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

    return paired_bootstrap(area, n, contents=contents, n_resamples=n_resamples, seed=seed)


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
    return Interval(float(wins.mean()), max(float(low), 0.0), min(float(high), 1.0))


def _require_scores(*classes: Float[np.ndarray, "..."]) -> None:
    if not all(scores.size for scores in classes):
        raise DataError("no scores to rank: give at least one question in both forms")
    if not all(np.isfinite(scores).all() for scores in classes):
        raise NonFiniteError("a score is NaN or infinite: look for the prompts that gave it")
