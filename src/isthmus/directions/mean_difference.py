"""The difference of the class means."""

from jaxtyping import Float
from torch import Tensor

from isthmus.directions.classes import checked_classes


def mean_difference(
    positive: Float[Tensor, "positive_prompt position d_model"],
    negative: Float[Tensor, "negative_prompt position d_model"],
    *,
    pooled: bool,
) -> Float[Tensor, "out_position d_model"]:
    """Returns the difference of the class means per position, v = μ₊ - μ₋.

    Refuses empty classes (`DataError`), unequal positions or widths (`ShapeError`) and states
    that are not finite (`NonFiniteError`).

    Source: Rimsky et al. 2023, arXiv 2312.06681, §3.

    Args:
        positive: States of the positive class; left unchanged.
        negative: States of the negative class, as many positions but any number of prompts.
        pooled: Whether all positions share one vector.

    Returns:
        Float64 vectors in activation units.
    """
    return checked_classes(positive, negative, pooled=pooled).difference
