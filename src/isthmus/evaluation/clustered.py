"""Rates and means over several draws per prompt, with prompts as the sampling unit."""

import numpy as np
from jaxtyping import Float

from isthmus.core.errors import ShapeError
from isthmus.evaluation.intervals import Interval, mean_interval, wilson_interval


def per_prompt(values: Float[np.ndarray, " row"], n_prompts: int) -> Float[np.ndarray, " prompt"]:
    """Returns the mean of every prompt over its draws.

    Args:
        values: All prompts of the first draw, then all of the second, and so on.
        n_prompts: How many prompts there are.

    Returns:
        One mean per prompt, in their order.

    Raises:
        ShapeError: If the values are not as many for every prompt.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if n_prompts < 1 or not numbers.size or numbers.size % n_prompts:
        raise ShapeError(
            f"{numbers.size} values of {n_prompts} prompts: expected the same number of draws, at "
            "least one, for each"
        )
    means: Float[np.ndarray, " prompt"] = numbers.reshape(-1, n_prompts).mean(axis=0)
    return means


def clustered_rate(
    hits: Float[np.ndarray, " row"], n_prompts: int, *, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Returns a rate over draws with an interval over prompts.

    Draws of one prompt are alike, so prompts are resampled, each with all of its draws. Where every
    prompt has the same rate of 0 or 1 a bootstrap would claim certainty: there it is the Wilson
    interval of as many trials as prompts.

    Args:
        hits: 1 where it happened, 0 where not: all prompts of the first draw, then of the second.
        n_prompts: How many prompts there are.
        n_resamples: Bootstrap resamples.
        seed: Which resamples.

    Returns:
        The rate and its interval, within 0 to 1.
    """
    rates = per_prompt(hits, n_prompts)
    if rates.max() == rates.min() and rates[0] in (0.0, 1.0):
        return wilson_interval(int(rates.sum()), n_prompts)
    return mean_interval(rates, n_resamples=n_resamples, seed=seed)
