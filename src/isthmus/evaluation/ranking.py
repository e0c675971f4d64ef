"""How well scores rank positive above negative ones, with a bootstrap over contents."""

import numpy as np
from jaxtyping import Float, Int

from isthmus.core.errors import DataError, NonFiniteError, ShapeError
from isthmus.evaluation.intervals import Contents, Interval, paired_bootstrap


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
    if not positive.size or not negative.size:
        raise DataError("no scores to rank: give at least one question in both forms")
    if not (np.isfinite(positive).all() and np.isfinite(negative).all()):
        raise NonFiniteError("a score is NaN or infinite: look for the prompts that gave it")
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
