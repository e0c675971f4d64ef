"""Tiny models of families beside those of `fakes`: what is unusual about each is switched on."""

from collections.abc import Mapping
from typing import Any

import torch
from tests.fakes import tiny_tokenizer, varied
from tokenizers import decoders
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from isthmus.models.language_model import LanguageModel, wrap_language_model

_N_LAYERS = 2

_SIZES: Mapping[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": _N_LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_GATED = {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 32,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

FURTHER: Mapping[str, Mapping[str, Any]] = {
    "apertus": _GATED,
    "arcee": _GATED,
    "bamba": {**_GATED, **_MAMBA2, "attn_layer_indices": [1], "mamba_chunk_size": 4},
    "bart": {"decoder_layers": 2, "d_model": 16, "decoder_ffn_dim": 32, "init_std": 0.2},
    "bitnet": _GATED,
    "codegen": {"rotary_dim": 4, "num_attention_heads": 4},
    "cohere2": {**_GATED, **_WINDOW},
    "deepseek_v3": {
        **_LATENT,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
    },
    "diffllama": {**_GATED, "num_key_value_heads": 2},
    "ernie4_5": _GATED,
    "exaone4": {**_GATED, **_WINDOW},
    "falcon_h1": {
        **_GATED,
        **_MAMBA2,
        "mamba_d_ssm": 32,
        "mamba_chunk_size": 4,
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.5,
        "attention_out_multiplier": 0.7,
        "ssm_out_multiplier": 0.6,
    },
    "glm": {**_GATED, "partial_rotary_factor": 0.5},
    "glm4": _GATED,
    "gpt_bigcode": {},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 2,
        "window_size": 8,
        "intermediate_size": 32,
    },
    "gpt_oss": {**_GATED, **_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {**_GATED, "num_local_experts": 4, "residual_multiplier": 0.5},
    "helium": _GATED,
    "hunyuan_v1_dense": _GATED,
    "jamba": {
        **_GATED,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8, "intermediate_size": 12},
    "llama4_text": {
        **_GATED,
        "intermediate_size_mlp": 32,
        "num_local_experts": 4,
        "attention_chunk_size": 8,
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 4},
    "minimax": {
        **_GATED,
        "num_local_experts": 4,
        "block_size": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "modernbert-decoder": {"intermediate_size": 32},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "expansion_ratio": 2},
    "nanochat": _GATED,
    "nemotron": _GATED,
    "olmo": _GATED,
    "olmoe": {**_GATED, "num_experts": 4, "num_experts_per_tok": 2},
    "openai-gpt": {},
    "persimmon": {"intermediate_size": 32},
    "phi": {"intermediate_size": 32},
    "phimoe": {**_GATED, "num_local_experts": 4},
    "qwen3_moe": {**_GATED, **_EXPERTS},
    "qwen3_next": {**_GATED, **_EXPERTS, **_DELTA, "shared_expert_intermediate_size": 12},
    "recurrent_gemma": {
        "intermediate_size": 32,
        "head_dim": 8,
        "lru_width": 16,
        "attention_window_size": 8,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 16, "intermediate_size": 32, "context_length": 128},
    "seed_oss": _GATED,
    "starcoder2": {**_GATED, "sliding_window": 8},
    "xglm": {"d_model": 16, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2, "init_std": 0.2},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 4,
        "intermediate_size": 32,
        "num_key_value_heads": 2,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 4,
        "attention_hidden_size": 32,
        "attention_head_dim": 16,
        "mamba_d_state": 4,
    },
}
"""Settings of every family by its model type."""


def further_network(family: str, n_vocab: int = 400, **changes: Any) -> PreTrainedModel:
    """Builds a random causal language model of one family, of width 16."""
    settings = {**_SIZES, "vocab_size": n_vocab, **FURTHER[family], **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **settings)
        return varied(AutoModelForCausalLM.from_config(config).float().eval())


def further_model(family: str, **changes: Any) -> LanguageModel:
    """Builds a random language model of one family with a tokenizer of its own."""
    tokenizer = tiny_tokenizer()
    # Raw pieces: half characters would all decode to the same sign.
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    network = further_network(family, len(tokenizer), **changes)
    return wrap_language_model(network, tokenizer, family)
