"""Rates and means over several draws per prompt, with prompts as the sampling unit."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from isthmus.core.errors import ShapeError
from isthmus.evaluation.intervals import Contents, Interval, rate_interval


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
    _require_draws(numbers.size, n_prompts)
    means: Float[np.ndarray, " prompt"] = numbers.reshape(-1, n_prompts).mean(axis=0)
    return means


def clustered_rate(hits: Sequence[bool], n_prompts: int, contents: Contents = ()) -> Interval:
    """Returns a rate over draws with an interval over prompts.

    Draws of one prompt are alike, so they are worth as many trials as the prompts' differences say:
    a prompt is a content of `rate_interval`.

    Args:
        hits: Whether it happened: all prompts of the first draw, then all of the second, and so on.
        n_prompts: How many prompts there are.
        contents: What every prompt is about; when not given no two share a content.

    Returns:
        The rate and its interval, within 0 to 1.

    Raises:
        ShapeError: If there are not as many draws of every prompt.
    """
    _require_draws(len(hits), n_prompts)
    given = contents or [None] * n_prompts
    about = [f"prompt {i}" if one is None else f"about {one}" for i, one in enumerate(given)]
    return rate_interval(hits, about * (len(hits) // n_prompts))


def _require_draws(n_values: int, n_prompts: int) -> None:
    if n_prompts < 1 or not n_values or n_values % n_prompts:
        raise ShapeError(
            f"{n_values} values of {n_prompts} prompts: expected the same number of draws, at "
            "least one, for each"
        )
