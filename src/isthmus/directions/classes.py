"""The two classes of states that a direction is learned from: checks and pooling."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import DataError, NonFiniteError, ShapeError


class Classes(NamedTuple):
    """States of both classes, in float64.

    Attributes:
        positive: States that show the behaviour.
        negative: States that do not.
    """

    positive: Float[Tensor, "positive_prompt position d_model"]
    negative: Float[Tensor, "negative_prompt position d_model"]

    @property
    def difference(self) -> Float[Tensor, "position d_model"]:
        """Mean of the positive minus mean of the negative states."""
        return self.positive.mean(0) - self.negative.mean(0)

    @property
    def kept(self) -> dict[str, Tensor]:
        """Means and states of both classes as artifacts keep them, float32 on the CPU."""
        values = {
            "positive_mean": self.positive.mean(0),
            "negative_mean": self.negative.mean(0),
            "positive_states": self.positive,
            "negative_states": self.negative,
        }
        return {name: value.float().cpu() for name, value in values.items()}


def checked_classes(
    positive: Float[Tensor, "positive_prompt position d_model"],
    negative: Float[Tensor, "negative_prompt position d_model"],
    *,
    pooled: bool,
) -> Classes:
    """Checks the states of both classes and pools their positions if asked to.

    Args:
        positive: States of the positive class; left unchanged.
        negative: States of the negative class, as many positions; left unchanged.
        pooled: Whether to treat every position as another prompt.

    Returns:
        Both classes in float64; with one position when pooled.

    Raises:
        DataError: If a class is empty.
        ShapeError: If positions or widths differ.
        NonFiniteError: If a state is NaN or infinite.
    """
    if positive.shape[1:] != negative.shape[1:]:
        raise ShapeError(
            f"positive states are {tuple(positive.shape)}, negative {tuple(negative.shape)}: "
            "read both classes at the same site and positions"
        )
    for name, states in (("positive", positive), ("negative", negative)):
        if not states.numel():
            raise DataError(
                f"no {name} states, got shape {tuple(states.shape)}: give {name} prompts too"
            )
        if not torch.isfinite(states).all():
            raise NonFiniteError(
                f"the {name} states hold NaN or infinity: "
                "load the model in bfloat16 or float32, or drop the prompts that cause it"
            )
    if pooled:
        positive, negative = (states.flatten(0, 1)[:, None] for states in (positive, negative))
    return Classes(positive.detach().double(), negative.detach().double())
