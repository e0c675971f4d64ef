"""Edits at every token without exception, template pieces and generated tokens included."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError
from isthmus.core.sites import Site
from isthmus.core.texts import TokenBatch
from isthmus.interventions.ablation import DirectionalAblation
from isthmus.interventions.checks import unit_of


def ablated_everywhere(
    direction: Float[Tensor, " d_model"], sites: Sequence[Site]
) -> Callable[[TokenBatch], list[PlacedEdit]]:
    """Removes one direction at several sites and every token, h - (h·r) r with r = v / ‖v‖.

    Positions `all` leave the special pieces of a chat template alone; this does not. Only padding
    is left alone.

    Source: Arditi et al. 2024, arXiv:2406.11717, section 2.4.

    Args:
        direction: v, of any length but zero.
        sites: Where, at least one.

    Returns:
        A function that places the ablation on a batch.

    Raises:
        ConfigError: If there is no site.
    """
    if not sites:
        raise ConfigError("an ablation without a site: name at least one")
    edit = DirectionalAblation(unit_of("direction to ablate", direction))

    def place(batch: TokenBatch) -> list[PlacedEdit]:
        every_row = torch.ones(len(batch.texts), dtype=torch.bool)
        return [PlacedEdit(site, edit, batch.is_real, every_row) for site in sites]

    return place
