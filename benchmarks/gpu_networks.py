"""Models of the dimensions that the paper's pairs have, with random weights made on the device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.peers.material import EOS_ID, PAD_ID, character_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from isthmus.core.identity import ModelIdentity
from isthmus.models.language_model import LanguageModel
from isthmus.models.layouts import ModelLayout
from isthmus.models.probing import find_layout

N_WORDS = 4000
"""Tokens that prompts are drawn from; the vocabularies are larger."""


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a published model.

    Attributes:
        kind: Family, as transformers calls it.
        n_layers: Decoder blocks.
        d_model: Width of the residual stream.
        d_feed_forward: Width of the feed-forward part.
        heads: Query heads, key-value heads, and the width of each.
        n_vocab: Tokens.
        is_tied: Whether embedding and head are one matrix.
    """

    kind: str
    n_layers: int
    d_model: int
    d_feed_forward: int
    heads: tuple[int, int, int]
    n_vocab: int
    is_tied: bool = True


PUBLISHED: Mapping[str, Dimensions] = {
    "Qwen2.5-0.5B": Dimensions("qwen2", 24, 896, 4864, (14, 2, 64), 151_936),
    "Llama-3.2-1B": Dimensions("llama", 16, 2048, 8192, (32, 8, 64), 128_256),
    "Qwen2.5-1.5B": Dimensions("qwen2", 28, 1536, 8960, (12, 2, 128), 151_936),
    "Gemma-2-2B": Dimensions("gemma2", 26, 2304, 9216, (8, 4, 256), 256_000),
    "Llama-3.2-3B": Dimensions("llama", 28, 3072, 8192, (24, 8, 128), 128_256),
    "Qwen2.5-3B": Dimensions("qwen2", 36, 2048, 11_008, (16, 2, 128), 151_936),
    "Llama-3.1-8B": Dimensions("llama", 32, 4096, 14_336, (32, 8, 128), 128_256, is_tied=False),
}
"""Smallest first, so that a short run says most."""

TINY: Mapping[str, Dimensions] = {
    "tiny-qwen": Dimensions("qwen2", 3, 32, 64, (4, 2, 8), N_WORDS),
    "tiny-gemma": Dimensions("gemma2", 3, 48, 64, (4, 2, 16), N_WORDS),
    "tiny-llama": Dimensions("llama", 4, 64, 96, (4, 2, 16), N_WORDS + 900, is_tied=False),
}
"""For trying the script out without an accelerator."""

PAIRS = (
    ("Qwen2.5-0.5B", "Qwen2.5-1.5B"),
    ("Llama-3.2-1B", "Llama-3.2-3B"),
    ("Gemma-2-2B", "Llama-3.2-3B"),
    ("Llama-3.2-3B", "Llama-3.1-8B"),
)
"""Source and target of maps."""

TINY_PAIRS = (("tiny-qwen", "tiny-llama"),)


def build_model(name: str, size: Dimensions, device: torch.device, seed: int) -> LanguageModel:
    """Makes a model in float32 on the device; its identity is a name, since nothing is hashed.

    Args:
        name: What it is called.
        size: Its dimensions.
        device: Where its weights are drawn.
        seed: Decides them.

    Returns:
        A model that never ends an answer by itself.
    """
    n_heads, n_key_value, d_head = size.heads
    options: dict[str, Any] = {
        "vocab_size": size.n_vocab,
        "hidden_size": size.d_model,
        "intermediate_size": size.d_feed_forward,
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_key_value,
        "head_dim": d_head,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": size.is_tied,
        "bos_token_id": None,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    config = AutoConfig.for_model(size.kind, **options)
    torch.manual_seed(seed)
    with device:
        network: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Logit 0, below the largest of all others, so that every completion has the same length.
    with torch.no_grad():
        network.get_output_embeddings().weight[[PAD_ID, EOS_ID]] = 0
    network.eval().requires_grad_(requires_grad=False)
    layout: ModelLayout = find_layout(network)
    identity = ModelIdentity(name, "0" * 64, "0" * 64, layout.d_model, layout.n_layers)
    return LanguageModel(layout.root, character_tokenizer(N_WORDS), layout, identity)


def move_to(lm: LanguageModel, dtype: torch.dtype) -> None:
    """Changes the number format of a model's weights, in place."""
    network: Any = lm.layout.root
    network.to(dtype)
