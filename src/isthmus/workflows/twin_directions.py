"""Learns a behaviour's direction from twins, at several sites in one pass."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.direction import Direction
from isthmus.directions.methods import learn_site_direction
from isthmus.interventions.positions import PositionSelector, parse_positions
from isthmus.models.capture import activations_at, all_token_activations
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twins import encode_prompts_of_twins


def reading_positions(positions: str) -> PositionSelector:
    """Returns where a direction for `positions` is read: for all text, in the prompt."""
    selector = parse_positions(positions)
    return parse_positions("prompt") if selector.includes_generated else selector


def read_states(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    sites: Sequence[Site],
    positions: str,
    batch_size: int,
) -> dict[Site, Float[Tensor, "prompt position d_model"]]:
    """Reads the states at the selected tokens; where their number varies, their mean per prompt.

    Args:
        lm: The model.
        texts: Prompts.
        sites: Where to read.
        positions: Which tokens.
        batch_size: Prompts per forward pass.

    Returns:
        States by site, one row per prompt, in their order.
    """
    selector = reading_positions(positions)
    indices = [selector.token_indices(text) for text in texts]
    if selector.has_fixed_span and len({len(one) for one in indices}) == 1:
        return activations_at(lm, texts, sites, indices, batch_size=batch_size)
    read = all_token_activations(lm, texts, sites, batch_size=batch_size)
    return {
        site: torch.stack(
            [rows[list(i)].float().mean(0) for rows, i in zip(per_text, indices, strict=True)]
        )[:, None]
        for site, per_text in read.items()
    }


def learn_twin_direction(
    lm: LanguageModel,
    twins: Sequence[TwinPrompt],
    sites: Sequence[Site],
    positions: str,
    config: RunConfig,
) -> Direction:
    """Learns the direction from the clean to the bad trigger at every site.

    Args:
        lm: The model.
        twins: Training questions.
        sites: Where.
        positions: Which tokens it will be used at.
        config: Method, pooling.

    Returns:
        The direction, at all of the sites.
    """
    triggered, clean = encode_prompts_of_twins(lm, twins)
    pooled = config.pooled or not reading_positions(positions).has_fixed_span
    positive = read_states(lm, triggered, sites, positions, config.batch_size)
    negative = read_states(lm, clean, sites, positions, config.batch_size)
    by_site = {
        site: learn_site_direction(config.method, positive[site], negative[site], pooled=pooled)
        for site in sites
    }
    provenance = {"n_prompts": len(twins), "triggers": list(twins[0].spans or ())}
    return Direction(by_site, lm.identity, config.method, positions, pooled, provenance)


def at_one_site(direction: Direction, site: Site) -> Direction:
    """Returns a direction reduced to one of its sites."""
    return replace(direction, by_site={site: direction.at(site)})
