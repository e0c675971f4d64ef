"""Differences of paired states, fitted beside the states themselves.

What a map has to carry is a difference: a state with a behaviour minus the same state without it.
Few of all tokens decide between the two, and least squares on states hardly sees them.

1. `difference_moments` sums ΔxᵀΔx, ΔxᵀΔy and Δy² about 0, for a difference is no matter of a mean.
2. `with_differences` adds these sums to the moments of states, weighted by what both vary.
3. A fitter from moments then minimises Σ |f(x) - y|² + w Σ |Δx W - Δy|², W being the map's linear
   part: a stacked least squares, at the price of the one without differences.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.moments import PairMoments

RATIO = 30.0
"""How many times the states' variance the differences make up; found on validation questions."""


def difference_moments(
    source: Float[Tensor, "row d_source"], target: Float[Tensor, "row d_target"]
) -> PairMoments:
    """Sums paired differences, each with both signs, so that their mean is 0.

    Refuses other numbers of rows (`ShapeError`) and what is not finite (`NonFiniteError`).

    Args:
        source: What differs in the source: twin minus twin at one token.
        target: What differs in the target there, row by row.

    Returns:
        Moments of twice as many pairs.
    """
    moments = PairMoments(source.shape[1], target.shape[1])
    for sign in (1, -1):
        moments.update(sign * source, sign * target)
    return moments


def with_differences(
    states: PairMoments, differences: PairMoments, ratio: float = RATIO
) -> PairMoments:
    """Adds paired differences to paired states.

    S = S_states + w S_differences with w = ratio · tr Syy(states) / tr Syy(differences). Means are
    those of the states.

    Args:
        states: Moments of paired states.
        differences: What `difference_moments` returned for the same sites.
        ratio: How much the differences vary in the sum, in units of what the states do.

    Returns:
        Moments that share no memory with either.

    Raises:
        ConfigError: If the ratio is not above 0.
        FitError: If the differences are all 0.
    """
    if not 0 < ratio < float("inf"):
        raise ConfigError(f"ratio {ratio}: expected a finite number above 0, such as {RATIO:g}")
    varied = float(differences.target_total)
    if not varied:
        raise FitError(
            "the target's states do not differ between the twins: give twins that it reads in "
            "different ways, or a map from states alone"
        )
    weight = ratio * float(states.target_total) / varied
    return PairMoments.of_sums(
        states.n,
        (states.source_mean, states.target_mean),
        (
            states.source_scatter + weight * differences.source_scatter,
            states.cross_scatter + weight * differences.cross_scatter,
            states.target_scatter + weight * differences.target_scatter,
        ),
    )


def shuffled_differences(
    rows: Float[Tensor, "row d_model"], generator: torch.Generator
) -> Float[Tensor, "row d_model"]:
    """Shuffles differences and their signs: without the signs their mean would tell of the pairs.

    Args:
        rows: Differences; left unchanged.
        generator: Source of randomness, on the CPU.

    Returns:
        The same rows in a random order, half of them turned round.
    """
    signs = 2.0 * torch.randint(2, (len(rows), 1), generator=generator) - 1
    return shuffled_rows(rows, generator) * signs.to(rows)
