"""Fits the ridge map on states and on what differs between contrast prompts."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from isthmus.data.parts import Part
from isthmus.maps.base import AffineMap
from isthmus.maps.contrasts import difference_moments, shuffled_differences, with_differences
from isthmus.maps.moments import PairMoments
from isthmus.maps.ridge import RidgeFitter
from isthmus.maps.rows import PairedRows

ON_CONTRASTS = "ridge_contrast"
"""How the map is named."""

FITTED_ON: tuple[Part, ...] = ("train", "selection")
"""The parts of which it sees differences; quality is measured on states that are held out."""

Contrasts = Mapping[Part, PairedRows]
"""Paired differences to fit on and to choose a strength on."""


def fit_on_contrasts(moments: Mapping[Part, PairMoments], contrasts: Contrasts) -> AffineMap:
    """Fits ridge to states with differences beside them, as `maps.contrasts` weighs the two.

    Args:
        moments: Of the states, to fit on and to choose a strength on.
        contrasts: The differences of the same sites.

    Returns:
        The map.

    Raises:
        FitError: If the target's states do not differ.
    """
    train, selection = (
        with_differences(
            moments[part], difference_moments(contrasts[part].source, contrasts[part].target)
        )
        for part in FITTED_ON
    )
    return replace(RidgeFitter().fit(train, selection), method=ON_CONTRASTS)


def shuffled_contrasts(contrasts: Contrasts, generator: torch.Generator) -> Contrasts:
    """Pairs differences of the source with those of other tokens of the target, half turned round.

    Args:
        contrasts: Differences; left unchanged.
        generator: Source of randomness, on the CPU.

    Returns:
        As many, which tell nothing of each other.
    """
    return {
        part: PairedRows(one.source, shuffled_differences(one.target, generator))
        for part, one in contrasts.items()
    }
