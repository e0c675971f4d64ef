"""How well a score ranks places for an intervention, and the rule that chooses one by it.

1. A place without a score ranks below every other.
2. A rule is as good as the effect at its first choice: its regret is what the best place would have
   given more. Places that tie for the first choice count with their mean effect.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from isthmus.core.errors import ConfigError, DataError

Place = TypeVar("Place")

DEFAULT_RULE = ("trial",)
"""Scores whose mean rank chooses where nothing else is asked for; docs/layers.md says how well."""


def rank_correlation(
    scores: Float[np.ndarray, " place"], effects: Float[np.ndarray, "resample place"]
) -> Float[np.ndarray, " resample"]:
    """Returns Spearman's rank correlation of scores with the effects of every resample.

    Args:
        scores: One per place; NaN where there is none.
        effects: Effect at every place, in one or more resamples.

    Returns:
        From -1 to 1; NaN where all scores or all effects are equal.
    """
    ranks = rankdata(_known(scores))
    theirs = rankdata(effects, axis=1)
    a = ranks - ranks.mean()
    b = theirs - theirs.mean(axis=1, keepdims=True)
    own = np.sqrt((a**2).sum() * (b**2).sum(axis=1))
    found = np.full(len(effects), np.nan)
    np.divide(b @ a, own, out=found, where=own > 0)
    return found


def regret_of(
    scores: Float[np.ndarray, " place"], effects: Float[np.ndarray, "resample place"]
) -> Float[np.ndarray, " resample"]:
    """Returns the best effect of every resample minus that at the place with the highest score.

    Equal scores everywhere give the expected regret of a random choice.

    Args:
        scores: One per place; NaN where there is none.
        effects: Effect at every place, in one or more resamples.

    Returns:
        At least 0.
    """
    known = _known(scores)
    regrets: Float[np.ndarray, " resample"] = effects.max(axis=1) - effects[
        :, known == known.max()
    ].mean(axis=1)
    return regrets


def mean_ranks(*scores: Float[np.ndarray, " place"]) -> Float[np.ndarray, " place"]:
    """Joins scores that have no common unit: the mean of a place's ranks, 1 for the highest of all.

    Args:
        *scores: One array per score; NaN where there is none.

    Returns:
        Above 0 and at most 1.
    """
    ranks = [rankdata(_known(one)) / len(one) for one in scores]
    joined: Float[np.ndarray, " place"] = np.mean(ranks, axis=0)
    return joined


def choose_layers(
    scores: Mapping[Place, Mapping[str, float]],
    rule: str | Sequence[str] = DEFAULT_RULE,
    n: int = 1,
) -> list[Place]:
    """Chooses where to intervene, or what to try, by scores alone.

    Args:
        scores: For every place its scores by name, all with the same names; more is better.
        rule: The name of a score, or several whose ranks are averaged.
        n: How many places, at least 1.

    Returns:
        The places that rank highest, best first; equal ones in the order given.

    Raises:
        DataError: If there is no place.
        ConfigError: If a place has no score of that name, or none is named.
    """
    names = (rule,) if isinstance(rule, str) else tuple(rule)
    places = list(scores)
    if not places:
        raise DataError("no place to choose from: give at least one")
    missing = [name for name in names if any(name not in of for of in scores.values())]
    if missing or not names:
        raise ConfigError(
            f"no scores {missing} to choose layers by: use some of {', '.join(scores[places[0]])}"
        )
    columns = [np.array([scores[place][name] for place in places]) for name in names]
    return [places[i] for i in _highest(mean_ranks(*columns), n)]


def shortlist_regret(
    scores: Float[np.ndarray, " place"],
    promises: Float[np.ndarray, " place"],
    effects: Float[np.ndarray, "resample place"],
    n: int,
) -> Float[np.ndarray, " resample"]:
    """Returns the regret of a rule that names n places of which validation chooses one.

    Args:
        scores: One per place; NaN where there is none.
        promises: Effect on validation, one per place; only those of the n places are looked at.
        effects: Effect at every place, in one or more resamples.
        n: How many places are tried, at least 1.

    Returns:
        At least 0.
    """
    tried = _highest(scores, n)
    chosen = tried[int(np.argmax(promises[tried]))]
    regrets: Float[np.ndarray, " resample"] = effects.max(axis=1) - effects[:, chosen]
    return regrets


def _highest(scores: Float[np.ndarray, " place"], n: int) -> Int[np.ndarray, " chosen"]:
    if n < 1:
        raise ConfigError(f"{n} places: expected at least 1")
    highest: Int[np.ndarray, " chosen"] = np.argsort(-_known(scores), kind="stable")[:n]
    return highest


def _known(scores: Float[np.ndarray, " place"]) -> Float[np.ndarray, " place"]:
    known: Float[np.ndarray, " place"] = np.where(np.isnan(scores), -math.inf, scores)
    return known
