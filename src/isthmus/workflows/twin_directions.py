"""Learns a behaviour's direction from twins, at several sites in one pass.

A direction for tokens of the prompt is read at those tokens. One for generated tokens is read where
an answer decides: at the last token that the clean and the bad answer share, after the bad and
after the clean trigger, as directions are read at the letter that answers a question in Rimsky et
al., arXiv 2312.06681, section 3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import DataError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.direction import Direction
from isthmus.directions.learned import Learned
from isthmus.directions.methods import learn_site_direction
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.subspace import Subspace
from isthmus.interventions.positions import PositionSelector, parse_positions
from isthmus.models.capture import activations_at, all_token_activations
from isthmus.models.encoding import encode_prompts
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
    if _fixed_indices(texts, positions) is not None:
        return read_states_at_each(lm, texts, sites, [positions], batch_size)[positions]
    indices = [reading_positions(positions).token_indices(text) for text in texts]
    read = all_token_activations(lm, texts, sites, batch_size=batch_size)
    return {
        site: torch.stack(
            [rows[list(i)].float().mean(0) for rows, i in zip(per_text, indices, strict=True)]
        )[:, None]
        for site, per_text in read.items()
    }


def _fixed_indices(texts: Sequence[EncodedText], positions: str) -> list[tuple[int, ...]] | None:
    """Returns the selected tokens of every text where all have equally many, else None."""
    selector = reading_positions(positions)
    indices = [tuple(selector.token_indices(text)) for text in texts]
    is_fixed = selector.has_fixed_span and len({len(one) for one in indices}) == 1
    return indices if is_fixed else None


def read_states_at_each(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    sites: Sequence[Site],
    positions: Sequence[str],
    batch_size: int,
) -> dict[str, dict[Site, Float[Tensor, "prompt position d_model"]]]:
    """Reads the states at several kinds of positions in one pass.

    Args:
        lm: The model.
        texts: Prompts.
        sites: Where to read.
        positions: Kinds of tokens; equally many of a kind in every prompt.
        batch_size: Prompts per forward pass.

    Returns:
        States by kind and site, as `read_states` returns them; kinds whose number of tokens varies
        are left out.
    """
    indices = {one: _fixed_indices(texts, one) for one in positions}
    fixed = {one: found for one, found in indices.items() if found is not None}
    if not fixed:
        return {}
    joined = [[i for found in fixed.values() for i in found[row]] for row in range(len(texts))]
    read = activations_at(lm, texts, sites, joined, batch_size=batch_size)
    states: dict[str, dict[Site, Tensor]] = {}
    start = 0
    for one, found in fixed.items():
        stop = start + len(found[0])
        states[one] = {site: rows[:, start:stop] for site, rows in read.items()}
        start = stop
    return states


def learn_twin_directions(
    lm: LanguageModel,
    twins: Sequence[TwinPrompt],
    sites: Sequence[Site],
    positions: Sequence[str],
    config: RunConfig,
) -> dict[str, Direction]:
    """Learns the direction of every kind of positions; those of the prompt in one reading.

    Args:
        lm: The model.
        twins: Training questions.
        sites: Where.
        positions: Kinds of tokens that it will be used at.
        config: Method, pooling.

    Returns:
        By kind what `learn_twin_direction` returns.
    """
    in_prompt = [one for one in positions if parse_positions(one).kind != "generated"]
    read = [
        read_states_at_each(lm, texts, sites, in_prompt, config.batch_size)
        for texts in encode_prompts_of_twins(lm, twins)
    ]
    return {
        one: _direction(lm, twins, one, (read[0][one], read[1][one]), config)
        if one in in_prompt and all(one in side for side in read)
        else learn_twin_direction(lm, twins, sites, one, config)
        for one in positions
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
        positions: Which tokens it will be used at; for `generated` it is read where answers part,
            for `all` in the prompt.
        config: Method, pooling.

    Returns:
        The direction, at all of the sites.
    """
    if parse_positions(positions).kind == "generated":
        positive, negative = _states_where_answers_part(lm, twins, sites, config.batch_size)
    else:
        triggered, clean = encode_prompts_of_twins(lm, twins)
        positive = read_states(lm, triggered, sites, positions, config.batch_size)
        negative = read_states(lm, clean, sites, positions, config.batch_size)
    return _direction(lm, twins, positions, (positive, negative), config)


def _direction(
    lm: LanguageModel,
    twins: Sequence[TwinPrompt],
    positions: str,
    states: tuple[dict[Site, Tensor], dict[Site, Tensor]],
    config: RunConfig,
) -> Direction:
    pooled = config.pooled or not reading_positions(positions).has_fixed_span
    positive, negative = states
    by_site = {
        site: learn_site_direction(config.method, positive[site], negative[site], pooled=pooled)
        for site in positive
    }
    provenance = {"n_prompts": len(twins), "triggers": list(twins[0].spans or ())}
    return Direction(by_site, lm.identity, config.method, positions, pooled, provenance)


def _states_where_answers_part(
    lm: LanguageModel, twins: Sequence[TwinPrompt], sites: Sequence[Site], batch_size: int
) -> list[dict[Site, Float[Tensor, "prompt 1 d_model"]]]:
    """Reads both twins at the last token before their clean and their bad answer differ."""
    answers = ([twin.clean_answer for twin in twins], [twin.bad_answer for twin in twins])
    states = []
    for prompts in ([twin.triggered for twin in twins], [twin.clean for twin in twins]):
        good, bad = (encode_prompts(lm.tokenizer, prompts, answers=side) for side in answers)
        last = [[last_shared_token(*pair)] for pair in zip(good, bad, strict=True)]
        states.append(activations_at(lm, good, sites, last, batch_size=batch_size))
    return states


def last_shared_token(text: EncodedText, other: EncodedText) -> int:
    """Returns the last token before two answers to one prompt differ.

    Args:
        text: A prompt with an answer.
        other: The same prompt with another answer.

    Returns:
        Its index in both: the prompt's last token, or a later one where answers begin alike.

    Raises:
        DataError: If the answers, or the prompts, do not differ in the answer.
    """
    for i, (one, two) in enumerate(zip(text.token_ids, other.token_ids, strict=False)):
        if one != two and i >= text.n_prompt:
            return i - 1
    raise DataError(
        f"no token at which the answers of {text.text!r} and {other.text!r} part: give a clean and "
        "a bad answer to the same prompt that differ"
    )


class Origin(NamedTuple):
    """Where a direction, a subspace or a probe comes from, as results name it.

    Attributes:
        model: Name of the model in which it was learned.
        map_method: The map that it came through, or several in the order of the way; None of one
            that was learned where it is.
        source_sites: Sites at which it was read there, as written; None likewise.
    """

    model: str
    map_method: str | None
    source_sites: str | None


def origin_of(direction: Direction | Subspace | ModelProbe) -> Origin:
    """Returns where something was learned, and by which maps it came however long its way was."""
    certificate = direction.certificate
    if certificate is not None:
        read_at = ", ".join(certificate.source_sites)
        return Origin(certificate.source.name, certificate.map_method, read_at)
    # Files of versions before certificates tell it in their provenance.
    told = direction.provenance
    name = told.get("source_model", direction.model.to_json())["name"]
    return Origin(name, told.get("map_method"), ", ".join(told.get("source_sites", ())) or None)


def at_one_site(direction: Learned, site: Site) -> Learned:
    """Returns a direction or subspace at one of its sites, of which alone nothing was measured."""
    if direction.sites == (site,):
        return direction
    return direction.with_vectors({site: direction.at(site)})
