"""Controls on the pairs that a map is fitted on."""

import torch
from jaxtyping import Float
from torch import Tensor


def shuffled_rows(
    rows: Float[Tensor, "row d_model"], generator: torch.Generator
) -> Float[Tensor, "row d_model"]:
    """Shuffles rows, so that pairing them with another tensor's rows means nothing.

    Args:
        rows: Activations; left unchanged.
        generator: Source of randomness, on any device.

    Returns:
        The same rows in a random order.
    """
    order = torch.randperm(len(rows), generator=generator, device=generator.device)
    return rows[order.to(rows.device)]
