"""Pairs of unembedding rows: what both models say about the tokens that both know.

1. The head's row of a token is the direction of the residual stream that makes it more likely; a
   final norm's weight is multiplied in.
2. Tokens pair when both tokenizers write them with the same characters; special ones are left out.
3. A map fitted on these rows needs no forward pass. It assumes that the stream keeps the geometry
   of the head in every layer.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from isthmus.core.errors import DataError
from isthmus.maps.rows import PairedRows
from isthmus.models.language_model import LanguageModel
from isthmus.models.placement import device_of, weights_at_hand

FEWEST = 64
"""Fewest tokens that two vocabularies must share."""


def vocabulary_rows(source: LanguageModel, target: LanguageModel) -> PairedRows:
    """Pairs the unembedding rows of the tokens that both models know; runs neither.

    Source: Lee, Weber, Viégas and Wattenberg 2025, arXiv 2503.21073.

    Args:
        source: Source model.
        target: Target model.

    Returns:
        One pair per shared token, in the order of the source's vocabulary.

    Raises:
        DataError: If the vocabularies share fewer than `FEWEST` tokens.
    """
    known = [_tokens(lm.tokenizer) for lm in (source, target)]
    shared = [token for token in known[0] if token in known[1]]
    if len(shared) < FEWEST:
        raise DataError(
            f"{source.identity.name} and {target.identity.name} share {len(shared)} tokens, fewer "
            f"than {FEWEST}: use a map that is fitted on texts, such as ridge"
        )
    sides = [
        _unembedding(lm)[[ids[token] for token in shared]]
        for lm, ids in zip((source, target), known, strict=True)
    ]
    return PairedRows(sides[0], sides[1])


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids by the text of a token, in the order of ids; each text once."""
    special = set(tokenizer.all_special_ids)
    found: dict[str, int] = {}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        if index not in special and (text := _text(token)):
            found.setdefault(text, index)
    return found


def _text(token: str) -> str:
    """Writes a token alike whether its tokenizer marks spaces by Ġ, ▁ or not at all."""
    return token.replace("Ġ", " ").replace("▁", " ")


def _unembedding(lm: LanguageModel) -> Float[Tensor, "vocab d_model"]:
    with weights_at_hand(lm.layout.lm_head):
        weight = getattr(lm.layout.lm_head, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise DataError(f"the head of {lm.identity.name} has no weight matrix: use another map")
        wide = weight.detach().float().cpu()
    return wide * _norm_weight(lm.layout.final_norm, lm.d_model)


def _norm_weight(norm: nn.Module | None, d_model: int) -> Float[Tensor, " d_model"]:
    """What the final norm multiplies a stream of unit length by, found by asking it."""
    if norm is None:
        return torch.ones(d_model)
    weight = next(iter(norm.parameters()), torch.ones(d_model))
    device = device_of(norm) if weight.is_meta else weight.device
    with torch.no_grad():
        ones = torch.ones(2, d_model, dtype=weight.dtype, device=device)
        # Alternating signs have mean 0 and length 1 per coordinate, so that every kind of norm
        # returns its own factor: RMS norms of weight w, of weight 1 + w, and layer norms.
        ones[:, 1::2] = -1
        made = norm(ones)[0] - norm(-ones)[0]
    factor: Tensor = (made / 2 * ones[0]).float().cpu()
    return factor
