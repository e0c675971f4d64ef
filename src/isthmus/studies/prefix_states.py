"""States of a said prefix: what a model's residual stream holds where it has just said a prefix.

1. A prompt is encoded bare, followed by the prefix (`said`), and followed by as many placeholders.
2. `own_states` reads the states of the said version in the model itself; `mapped_states` reads them
   in a source model and maps them, pairing tokens by character end.
3. `place_at` puts states at chosen tokens of each text, whatever batch it comes in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.data.alignment import pair_tokens
from isthmus.interventions.row_replacement import RowReplacement, take_earlier_rows
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel

States = list[Float[Tensor, "_ _"]]
"""For every text one row per token."""

Places = dict[int, Float[Tensor, " d_model"]]
"""What stands at some tokens of one text."""


@dataclass(frozen=True)
class PrefixTexts:
    """Prompts as one model sees them, with and without a prefix said.

    Attributes:
        bare: The prompts.
        said: Each followed by the prefix.
        held: Each followed by as many placeholders as the prefix has tokens.
        n_prefix: How many tokens that is.
        triggers: For every prompt the first and one-past-last token of its trigger.
    """

    bare: list[EncodedText]
    said: list[EncodedText]
    held: list[EncodedText]
    n_prefix: int
    triggers: list[tuple[int, int]]


def encode_prefix(
    lm: LanguageModel, prompts: Sequence[str], trigger: str, prefix: str
) -> PrefixTexts:
    """Encodes prompts bare, with a prefix said, and with placeholders in its place.

    Args:
        lm: The model.
        prompts: User messages that hold the trigger.
        trigger: Text of the trigger.
        prefix: What the answer begins with.

    Returns:
        The texts. A placeholder is the prompt's own last token, which says nothing new.

    Raises:
        DataError: If the prefix has another number of tokens after another prompt.
    """
    triggers = [trigger] * len(prompts)
    bare = encode_prompts(lm.tokenizer, prompts, triggers=triggers)
    said = encode_prompts(lm.tokenizer, prompts, answers=[prefix] * len(prompts), end=False)
    lengths = {len(text) - text.n_prompt for text in said}
    if len(lengths) != 1:
        raise DataError(f"the prefix {prefix!r} has {sorted(lengths)} tokens: expected one number")
    (n_prefix,) = lengths
    held = [
        replace(t, token_ids=t.token_ids[: t.n_prompt] + (t.token_ids[t.n_prompt - 1],) * n_prefix)
        for t in said
    ]
    return PrefixTexts(bare, said, held, n_prefix, [text.trigger or (0, 0) for text in bare])


def own_states(lm: LanguageModel, texts: PrefixTexts, site: Site) -> States:
    """Returns what the model itself computes at one site where the prefix is said."""
    return all_token_activations(lm, texts.said, [site])[site]


def mapped_states(
    source_states: dict[Site, States],
    texts: tuple[PrefixTexts, PrefixTexts],
    activation_map: Callable[[Tensor], Tensor],
) -> States:
    """Maps a source's states where the prefix is said to the tokens of the target.

    Args:
        source_states: States of the source's said texts at every site that the map reads, in its
            order.
        texts: The texts as the source and as the target see them.
        activation_map: From the concatenated source sites to a target site.

    Returns:
        For every text one row per target token; a token without a partner takes the row of the
        nearest earlier one.
    """
    found = []
    for i, (seen, other) in enumerate(zip(texts[0].said, texts[1].said, strict=True)):
        in_source, in_target = pair_tokens(seen, other, "character_end")
        joined = torch.cat([rows[i][in_source] for rows in source_states.values()], dim=-1)
        mapped = activation_map(joined).float()
        rows = torch.zeros(len(other), mapped.shape[1])
        is_given = torch.zeros(len(other), dtype=torch.bool)
        rows[in_target], is_given[in_target] = mapped, True
        found.append(take_earlier_rows(rows, is_given)[0])
    return found


def place_at(
    texts: Sequence[EncodedText], places: Sequence[Places], site: Site
) -> Callable[[TokenBatch], Sequence[PlacedEdit]]:
    """Returns what overwrites chosen tokens of each text.

    Args:
        texts: Distinct texts.
        places: For every text the state of each token that is overwritten.
        site: Where.

    Returns:
        A function from a batch of these texts, padded on either side, to one placed edit.
    """
    by_ids = {text.token_ids: one for text, one in zip(texts, places, strict=True)}
    d_model = len(next(iter(places[0].values())))

    def place(batch: TokenBatch) -> list[PlacedEdit]:
        rows = torch.zeros(*batch.token_ids.shape, d_model)
        mask = torch.zeros_like(batch.is_real)
        for row, (text, offset) in enumerate(zip(batch.texts, batch.offsets, strict=True)):
            for token, state in by_ids[text.token_ids].items():
                rows[row, offset + token] = state
                mask[row, offset + token] = True
        return [RowReplacement(rows, mask).at(site)]

    return place


def at_last_token(texts: PrefixTexts, states: States) -> list[Places]:
    """Puts the state after the prefix at the prompt's last token."""
    return [{text.n_prompt - 1: rows[-1]} for text, rows in zip(texts.bare, states, strict=True)]


def over_the_trigger(texts: PrefixTexts, states: States) -> list[Places]:
    """Puts the state after the prefix at the last token, and what led there over the trigger.

    The trigger's tokens take the states of the prompt's own end and of the prefix, as far as there
    is room: what is read later finds the prefix said and no trigger.
    """
    found = []
    for text, rows, (start, stop) in zip(texts.bare, states, texts.triggers, strict=True):
        before = rows[: len(rows) - 1][-(stop - start) :]
        places = {stop - len(before) + i: state for i, state in enumerate(before)}
        found.append({**places, text.n_prompt - 1: rows[-1]})
    return found


def at_placeholders(texts: PrefixTexts, states: States) -> list[Places]:
    """Puts the states of the prefix at the placeholders."""
    return [
        {text.n_prompt + i: rows[text.n_prompt + i] for i in range(texts.n_prefix)}
        for text, rows in zip(texts.held, states, strict=True)
    ]
