"""States of a said prefix: what a model's residual stream holds where it has just said a prefix.

1. A prompt is encoded bare, followed by the prefix (`said`), and followed by as many placeholders.
2. `own_states` reads the states of the said version in the model itself; `paired_states` lays out
   those of a source model by the target's tokens, paired by character end, for a map to read.
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

    def first(self, n: int) -> "PrefixTexts":
        """Returns the first prompts alone."""
        return replace(
            self,
            bare=self.bare[:n],
            said=self.said[:n],
            held=self.held[:n],
            triggers=self.triggers[:n],
        )


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


def own_states(lm: LanguageModel, texts: PrefixTexts, sites: Sequence[Site]) -> dict[Site, States]:
    """Returns what the model itself computes at some sites where the prefix is said."""
    return all_token_activations(lm, texts.said, sites)


def paired_states(
    source_states: dict[Site, States], texts: tuple[PrefixTexts, PrefixTexts]
) -> States:
    """Returns a source's states where the prefix is said, token by token of the target.

    Args:
        source_states: States of the source's said texts at every site that maps read, in order.
        texts: The texts as the source and as the target see them.

    Returns:
        For every text one row per target token, the sites concatenated; a token without a partner
        takes the row of the nearest earlier one.
    """
    found = []
    for i, (seen, other) in enumerate(zip(texts[0].said, texts[1].said, strict=True)):
        in_source, in_target = pair_tokens(seen, other, "character_end")
        joined = torch.cat([rows[i][in_source] for rows in source_states.values()], dim=-1)
        rows = torch.zeros(len(other), joined.shape[1])
        is_given = torch.zeros(len(other), dtype=torch.bool)
        rows[in_target], is_given[in_target] = joined, True
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


def in_place_of_trigger(texts: PrefixTexts, states: States) -> list[Places]:
    """Moves everything after the trigger up over its last tokens and ends the prompt with a prefix.

    The state of every later token moves by as many places as the prefix has tokens, so that the
    prefix's states stand where the prompt ends, at the distances that a said prefix has.

    Args:
        texts: The prompts.
        states: For every text one row per token of the said version.

    Returns:
        What stands at every prompt token from there on; no token is added.

    Raises:
        DataError: If there is no room before the end of a trigger.
    """
    found = []
    for rows, (_, stop) in zip(states, texts.triggers, strict=True):
        if stop < texts.n_prefix:
            raise DataError(
                f"the trigger ends at token {stop}: a prefix of {texts.n_prefix} tokens needs as "
                "many before its end"
            )
        found.append({i - texts.n_prefix: rows[i] for i in range(stop, len(rows))})
    return found


def at_placeholders(texts: PrefixTexts, states: States) -> list[Places]:
    """Puts the states of the prefix at the placeholders."""
    return [
        {text.n_prompt + i: rows[text.n_prompt + i] for i in range(texts.n_prefix)}
        for text, rows in zip(texts.held, states, strict=True)
    ]
