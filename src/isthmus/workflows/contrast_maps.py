"""Fits the ridge map on states and on what differs between contrast prompts."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from isthmus.data.parts import Part
from isthmus.maps.base import AffineMap, MapQuality
from isthmus.maps.contrasts import difference_moments, shuffled_differences, with_differences
from isthmus.maps.moments import PairMoments
from isthmus.maps.quality import held_out_quality
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


def fit_and_measure(
    moments: Mapping[Part, PairMoments], contrasts: Contrasts
) -> tuple[AffineMap, MapQuality]:
    """Fits the map and measures it on states that are held out.

    Args:
        moments: Of the states of every part.
        contrasts: The differences of the same sites.

    Returns:
        The map and its quality.

    Raises:
        FitError: If there are too few pairs, or the target's states do not differ.
    """
    made = fit_on_contrasts(moments, contrasts)
    return made, held_out_quality(made, moments["held_out"], moments["train"].n)


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
