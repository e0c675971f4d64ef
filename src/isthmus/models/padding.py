"""Whether a model continues a text that is padded on the left as it continues it alone.

Most read positions off the attention mask, or are told them. Some number columns, padding included
(the decoders of BART and its kin), or let padding into a recurrent state (RWKV, xLSTM). Nothing in
a configuration says so; two tiny texts do.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin

from isthmus.core.errors import ModelError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch, pad_batch
from isthmus.models.decoding import can_drop_rows, next_token_ids, read_prompts, written_by_generate
from isthmus.models.hooks import capturing, unmetered
from isthmus.models.language_model import LanguageModel
from isthmus.models.probing import probe_tokens
from isthmus.models.row_cache import returns_cache

_N_SHORT = 3
_LEAST, _STEPS = 1e-3, 8
"""How far states may be off, of their size: rounding alone, of which there is more in a batch."""

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def reads_padded(lm: LanguageModel) -> bool:
    """Says whether rows padded on the left are continued as they are alone.

    Args:
        lm: The model; it is run on a few tokens when it is asked about for the first time.

    Returns:
        False where the states of a padded row, its first new token included, differ from those of
        the same row alone.
    """
    if lm.model not in _known:
        _known[lm.model] = not isinstance(lm.model, GenerationMixin) or _is_continued_alike(lm)
    return _known[lm.model]


def require_reading_padded(lm: LanguageModel) -> None:
    """Refuses models whose rows cannot be padded.

    Args:
        lm: The model.

    Raises:
        ModelError: If a padded row is not continued as it is alone.
    """
    if not reads_padded(lm):
        raise ModelError(
            f"{lm.identity.name} ({type(lm.model).__name__}) does not continue a padded text as it "
            "does alone: it numbers padding, or reads it; use generate_greedy, which puts texts "
            "of one length together"
        )


@torch.inference_mode()
def _is_continued_alike(lm: LanguageModel) -> bool:
    long, short = probe_tokens(lm.layout.embedding).tolist()
    texts = [_text(long), _text(short[:_N_SHORT])]
    together = _states(lm, pad_batch(texts, lm.pad_id, "left"))
    alone = torch.cat([_states(lm, pad_batch([text], lm.pad_id, "left")) for text in texts])
    allowed = max(_LEAST, _STEPS * torch.finfo(together.dtype).eps)
    apart = (together.double() - alone.double()).norm(dim=-1)
    return bool((apart <= allowed * alone.double().norm(dim=-1)).all())


def _text(token_ids: Sequence[int]) -> EncodedText:
    n = len(token_ids)
    return EncodedText("", tuple(token_ids), (0,) * n, (False,) * n, n)


def _states(lm: LanguageModel, batch: TokenBatch) -> Float[Tensor, "batch d_model"]:
    """Returns what the last block makes of the first new token of every row."""
    last = Site(lm.n_layers - 1)
    use_cache = returns_cache(lm)
    with unmetered(), capturing(lm.layout, [last]) as captured:
        if can_drop_rows(lm):
            rows, _ = read_prompts(lm, batch)
            next_token_ids(lm, rows, _same_token(lm, batch), rows.next_positions())
        else:
            written_by_generate(lm, batch, (), max_new_tokens=2, use_cache=use_cache)
        return captured[last][:, -1]


def _same_token(lm: LanguageModel, batch: TokenBatch) -> Int[Tensor, "batch 1"]:
    return probe_tokens(lm.layout.embedding)[:1, :1].expand(len(batch.texts), 1)
