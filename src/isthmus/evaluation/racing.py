"""Which of many candidates are out of a race, from losses on the same questions.

1. `resampled_effects` gives the effect of every candidate on the questions seen so far, and on
   paired resamples of them: a resample draws the same questions for all candidates, and those
   that share a content together.
2. `is_excluded` says which candidates fall behind a leader: those whose paired difference to it
   stays below 0 in all but a stated share of the resamples.
3. `mean_bounds` bounds a mean in the same way, such as the damage of a candidate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from isthmus.core.errors import ConfigError, ShapeError
from isthmus.evaluation.intervals import Contents, count_contents, resample_weights
from isthmus.evaluation.recovery import AnswerLosses

N_RESAMPLES = 400
MIN_QUESTIONS = 12
"""Fewest contents on which a candidate can be excluded: a bootstrap of fewer is too narrow."""


@dataclass(frozen=True)
class Effects:
    """Effects of candidates on the same questions.

    Attributes:
        values: On the questions as they are; NaN where undefined.
        resampled: On resamples of them.
        n: How many contents; a question that shares its own with no other is one.
    """

    values: Float[np.ndarray, " candidate"]
    resampled: Float[np.ndarray, "resample candidate"]
    n: int


@dataclass(frozen=True)
class Turning:
    """What a candidate does to one answer on the questions that it has seen.

    Attributes:
        losses: Of the answer that the edit is to bring about.
        turned: Whether it became likelier than the other where the two part.
    """

    losses: AnswerLosses
    turned: Bool[np.ndarray, " question"]

    @property
    def effect(self) -> float:
        """Recovery times the share of the questions that turned; NaN where undefined."""
        recovered = float(self.losses.ratios(np.arange(len(self.losses))[None])[0])
        return recovered * float(self.turned.mean())


def resampled_effects(
    removals: Sequence[Turning],
    inductions: Sequence[Turning] | None,
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Effects:
    """Returns min(recovery × turned, bad → clean; the same, clean → bad) of every candidate.

    Recovery says how far an answer has moved, the share that turned whether it has moved far
    enough: completions follow that.

    Args:
        removals: Of the clean answer, one per candidate, for the same questions in order.
        inductions: Of the bad answer; None for edits that only remove.
        seed: Which resamples; the same for all candidates.
        n_resamples: How many.

    Returns:
        Effects, with their resamples.

    Raises:
        ShapeError: If candidates have seen different numbers of questions.
    """
    sizes = {len(one.losses) for one in (*removals, *(inductions or ()))}
    if len(sizes) != 1:
        raise ShapeError(f"candidates have seen {sorted(sizes)} questions: expected the same")
    (n,) = sizes
    contents = removals[0].losses.contents
    drawn = resample_weights(n, n_resamples, contents=contents, seed=seed)
    weights = np.concatenate([np.full((1, n), 1 / n), drawn])
    found = _ratios(removals, weights)
    if inductions is not None:
        found = np.minimum(found, _ratios(inductions, weights))
    return Effects(found[0], found[1:], count_contents(contents, n))


def _ratios(
    found: Sequence[Turning], weights: Float[np.ndarray, "row question"]
) -> Float[np.ndarray, "row candidate"]:
    bad, clean, edited = (
        weights @ np.stack([getattr(one.losses, name) for one in found], axis=1)
        for name in ("bad", "clean", "edited")
    )
    gaps = bad - clean
    ratios: Float[np.ndarray, "row candidate"] = np.full_like(gaps, np.nan)
    np.divide(bad - edited, gaps, out=ratios, where=gaps > 0)
    shares = weights @ np.stack([o.turned for o in found], axis=1)
    effects: Float[np.ndarray, "row candidate"] = ratios * shares
    return effects


def is_excluded(effects: Effects, leader: int, level: float) -> Bool[np.ndarray, " candidate"]:
    """Says which candidates are worse than a leader beyond chance.

    A candidate is excluded when the share `level` of the resamples has effect(candidate) -
    effect(leader) below 0. The level is that of one comparison; it is not shared out among
    candidates. What is undefined is not excluded, and nothing is while questions of fewer than
    `MIN_QUESTIONS` contents were seen.

    Args:
        effects: Of all candidates.
        leader: Index of the leader, which is never excluded.
        level: Above 0.5 and below 1.

    Returns:
        True for the excluded.

    Raises:
        ConfigError: If the level is out of range.
    """
    require_level(level)
    excluded = np.zeros(len(effects.values), dtype=bool)
    if effects.n < MIN_QUESTIONS or math.isnan(effects.values[leader]):
        return excluded
    differences = effects.resampled - effects.resampled[:, [leader]]
    known = ~np.isnan(differences)
    enough = known.mean(axis=0) > 0.5
    below = np.where(known, differences, np.inf) < 0
    behind: Bool[np.ndarray, " candidate"] = enough & (below.mean(axis=0) >= level)
    behind[leader] = False
    return behind


def mean_bounds(
    values: Float[np.ndarray, " prompt"],
    level: float,
    *,
    contents: Contents = (),
    seed: int = 0,
) -> tuple[float, float]:
    """Returns one-sided lower and upper bounds of a mean, each at a level, by the bootstrap.

    Args:
        values: At least one.
        level: Above 0.5 and below 1.
        contents: What every prompt is about; when not given no two share a content.
        seed: Which resamples.

    Returns:
        Both bounds; endless ones while there are fewer than `MIN_QUESTIONS` contents.
    """
    require_level(level)
    n = len(values)
    if count_contents(contents, n) < MIN_QUESTIONS:
        return -math.inf, math.inf
    means = resample_weights(n, N_RESAMPLES, contents=contents, seed=seed) @ values
    low, high = np.quantile(means, (1 - level, level))
    return float(low), float(high)


def require_level(level: float) -> float:
    """Returns a level that a race can be held at.

    Args:
        level: Share of resamples that must agree.

    Returns:
        The same number.

    Raises:
        ConfigError: If it is not above 0.5 and below 1.
    """
    if not 0.5 < level < 1:
        raise ConfigError(f"level {level}: expected a number above 0.5 and below 1, such as 0.995")
    return level
