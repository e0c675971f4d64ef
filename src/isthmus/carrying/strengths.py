"""How much: strengths for a carried direction, found without a single label of the target.

1. Norm matching: an edit that works in the source moves its states by some share of their own
   length; in the target the carried edit moves them by the same share.
2. Equal damage: the largest strength whose divergence on ordinary text stays within a budget. Two
   methods are compared fairly where they do equal damage, not where they have equal strength.
"""

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError

LOWEST, HIGHEST = 0.05, 8.0
"""Strengths between which one is sought, in units of the direction's own norm."""

N_STEPS = 5
"""Halvings of that range, on a logarithmic scale: the strength is known to 17 %."""


def relative_dose(
    vectors: Float[Tensor, "position d_model"],
    states: Float[Tensor, "state d_model"],
    strength: float = 1.0,
) -> float:
    """Returns how far an edit moves a typical state, as a share of the state's own length.

    |strength| · mean ‖v‖ / median ‖h‖: the mean over positions, the median because a few tokens of
    large models have states a hundred times as long as the others.

    Args:
        vectors: v, in activation units.
        states: h, at the same site.
        strength: Multiplier.

    Returns:
        A share of at least 0.

    Raises:
        FitError: If there is no state, or the typical one is zero.
    """
    typical = float(states.double().norm(dim=-1).median()) if len(states) else 0.0
    if typical == 0:
        raise FitError("no typical norm: give states of ordinary text that are not all zero")
    return abs(strength) * float(vectors.double().norm(dim=-1).mean()) / typical


def norm_matched_strength(
    dose: float,
    vectors: Float[Tensor, "position d_model"],
    states: Float[Tensor, "state d_model"],
) -> float:
    """Returns the strength at which an edit moves a typical state of its site by a given share.

    Args:
        dose: The share, as `relative_dose` gives it for the source.
        vectors: The carried direction, in activation units of the target.
        states: States of the target at its site.

    Returns:
        dose / relative_dose(vectors, states).

    Raises:
        FitError: If the vectors are zero, or there is no typical state.
    """
    own = relative_dose(vectors, states)
    if own == 0:
        raise FitError("a direction of zero has no strength: carry one that is not")
    return dose / own


def strength_within_damage(
    damage: Callable[[float], float],
    budget: float,
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    n_steps: int = N_STEPS,
) -> float:
    """Returns about the largest strength whose damage stays within a budget.

    Halves the range on a logarithmic scale, `n_steps` times, and returns the largest strength that
    was tried and kept to the budget. Damage is taken to grow with strength.

    Args:
        damage: Measures the damage at a strength, for instance nats of divergence on benign text.
        budget: Most damage, above 0.
        lowest: Smallest strength.
        highest: Largest strength.
        n_steps: How often the range is halved.

    Returns:
        A strength from `lowest` to `highest`.

    Raises:
        ConfigError: If budget or range are not positive, or no step is allowed.
        FitError: If already the smallest strength exceeds the budget.
    """
    if not (budget > 0 and 0 < lowest < highest < math.inf and n_steps > 0):
        raise ConfigError(
            f"budget {budget}, strengths {lowest} to {highest}, {n_steps} steps: expected a "
            "positive budget, positive strengths in order and at least one step"
        )
    low, high, best = math.log(lowest), math.log(highest), None
    for _ in range(n_steps):
        middle = (low + high) / 2
        if damage(math.exp(middle)) <= budget:
            low = best = middle
        else:
            high = middle
    if best is not None:
        return math.exp(best)
    if damage(lowest) > budget:
        raise FitError(
            f"already strength {lowest:g} does more than {budget:g} of damage: allow more, or use "
            "another place"
        )
    return lowest
