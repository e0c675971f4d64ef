"""The first principal direction of paired differences."""

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import DataError
from isthmus.directions.classes import checked_classes


def principal_difference(
    positive: Float[Tensor, "positive_prompt position d_model"],
    negative: Float[Tensor, "negative_prompt position d_model"],
    *,
    pooled: bool,
) -> Float[Tensor, "out_position d_model"]:
    """Returns the direction along which paired differences are largest, v = ((μ₊ - μ₋) · u) u.

    u is the first right singular vector of the differences h₊ - h₋ about zero, which is their first
    principal direction when every pair counts in both orders; centred differences would lose what
    all pairs have in common.

    Refuses unequal positions or widths (`ShapeError`) and states that are not finite
    (`NonFiniteError`).

    Source: Zou et al. 2023, arXiv 2310.01405, §3.1.

    Args:
        positive: States of the positive class; left unchanged.
        negative: States of the negative class, row by row their twins.
        pooled: Whether all positions share one vector.

    Returns:
        Float64 vectors that point to the positive class; their norm is the distance of the class
        means along them, in activation units.

    Raises:
        DataError: If a class is empty or the classes have different numbers of prompts.
    """
    classes = checked_classes(positive, negative, pooled=pooled)
    if len(positive) != len(negative):
        raise DataError(
            f"pca needs pairs, got {len(positive)} positive and {len(negative)} negative prompts: "
            "give as many of both, twin by twin, or use mean_difference"
        )
    differences = (classes.positive - classes.negative).transpose(0, 1)
    _, _, principal = torch.linalg.svd(differences, full_matrices=False)
    unit: Tensor = principal[:, 0]
    # The sign of u is arbitrary; as a factor of the signed gap it cancels.
    gap: Tensor = (classes.difference * unit).sum(-1, keepdim=True)
    return gap * unit
