"""Capture at one layer against a bare forward pass that has only the blocks up to that layer."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from benchmarks.networks import Scale, random_model, random_texts
from benchmarks.plain_hooks import plain_hook
from benchmarks.timing import Case, Check, Pair
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaModel

from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch, pad_batch
from isthmus.models.capture import capture_activations
from isthmus.models.hooks import run_until_captured
from isthmus.models.language_model import LanguageModel

LIMIT = 1.05
_ROUNDING = 1e-5  # batches that are cut where padding would grow have products of other shapes

_ONE_PASS, _STREAMED = "run_until_captured", "capture_activations"
_BARE, _AGAIN, _WHOLE = "bare blocks", "bare blocks again", "whole pass, plain hook"


def capture_cases(scale: Scale, generator: torch.Generator) -> Iterator[Case]:
    """Yields one case for an early, a middle and the last layer.

    Args:
        scale: Sizes.
        generator: Source of randomness.

    Yields:
        Case: Both ways of capturing, the bare blocks twice, and a whole pass with a plain hook.
    """
    lm = random_model(scale, generator)
    texts = random_texts(lm, scale, scale.n_texts, generator, answers=True)
    batch = pad_batch(texts, lm.pad_id, "right")
    last = lm.n_layers - 1
    for where, layer in (("early", 0), ("middle", last // 2), ("last", last)):
        yield _case(lm, texts, batch, Site(layer), f"{where} layer, {Site(layer)}")


def _case(
    lm: LanguageModel, texts: list[EncodedText], batch: TokenBatch, site: Site, name: str
) -> Case:
    bare = bare_decoder(lm, site.layer + 1)
    streamed = partial(_streamed, lm, texts, site)
    expected = partial(_bare_pass, bare, batch)
    return Case(
        "Capture",
        name,
        {
            _ONE_PASS: partial(_one_pass, lm, batch, site),
            _STREAMED: streamed,
            _BARE: expected,
            _AGAIN: expected,
            _WHOLE: partial(_whole_pass, lm, batch, site),
        },
        (
            Pair(_ONE_PASS, _BARE, LIMIT),
            Pair(_STREAMED, _BARE, LIMIT),
            Pair(_AGAIN, _BARE),
            Pair(_WHOLE, _BARE),
        ),
        (
            Check(
                f"{_ONE_PASS} = {_BARE}",
                lambda: _distance(_one_pass(lm, batch, site), expected()),
            ),
            Check(
                f"{_STREAMED} = {_BARE}, padding left out",
                lambda: _distance(streamed(), expected()[batch.is_real]),
                _ROUNDING,
            ),
            Check(
                f"{_WHOLE} = {_BARE}",
                lambda: _distance(_whole_pass(lm, batch, site), expected()),
            ),
        ),
    )


def bare_decoder(lm: LanguageModel, n_layers: int) -> LlamaModel:
    """Returns a decoder of the model's embedding and first blocks, without norm or head.

    Args:
        lm: A Llama; the decoder shares its modules.
        n_layers: How many blocks it keeps.

    Returns:
        A model whose output is that of its last block.
    """
    root: Any = lm.layout.root
    whole = root.get_decoder()
    config = copy.deepcopy(whole.config)
    config.num_hidden_layers = n_layers
    with torch.device("meta"):
        bare: Any = LlamaModel(config)
    bare.embed_tokens, bare.rotary_emb = whole.embed_tokens, whole.rotary_emb
    bare.layers, bare.norm = nn.ModuleList(whole.layers[:n_layers]), nn.Identity()
    bare.eval()
    decoder: LlamaModel = bare
    return decoder


@torch.inference_mode()
def _bare_pass(bare: LlamaModel, batch: TokenBatch) -> Float[Tensor, "batch pos d_model"]:
    found: Tensor = bare(
        input_ids=batch.token_ids, attention_mask=batch.is_real.long(), use_cache=False
    ).last_hidden_state
    return found


@torch.inference_mode()
def _one_pass(
    lm: LanguageModel, batch: TokenBatch, site: Site
) -> Float[Tensor, "batch pos d_model"]:
    return run_until_captured(lm.layout, [site], batch.token_ids, batch.is_real)[site]


def _streamed(
    lm: LanguageModel, texts: list[EncodedText], site: Site
) -> Float[Tensor, "token d_model"]:
    batches = capture_activations(lm, texts, [site], batch_size=len(texts))
    return torch.cat([batch.values[site] for batch in batches])


@torch.inference_mode()
def _whole_pass(
    lm: LanguageModel, batch: TokenBatch, site: Site
) -> Float[Tensor, "batch pos d_model"]:
    seen: list[Tensor] = []
    with plain_hook(lm, site, seen.append):
        lm.model(input_ids=batch.token_ids, attention_mask=batch.is_real.long(), use_cache=False)
    return seen[0]


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")
