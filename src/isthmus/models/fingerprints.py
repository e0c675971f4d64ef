"""By what a model and its tokenizer are recognised wherever they were loaded from."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from isthmus.core.errors import NonFiniteError
from isthmus.models.placement import read_weight

_DECIDING = (
    "act",
    "alibi",
    "alpha",
    "attention_types",
    "attn_config",
    "chunk",
    "clip",
    "decoder_arch",
    "eps",
    "experts_per",
    "group",
    "head",
    "jitter",
    "layer_norm",
    "layer_types",
    "layernorm",
    "limit",
    "multiplier",
    "norm_before",
    "norm_topk",
    "parallel",
    "qk_norm",
    "rope",
    "rotary",
    "scal",
    "softcap",
    "top_k_experts",
    "topk",
    "window",
)
"""Parts of the names under which configurations keep what weights alone do not show."""

_NOT_DECIDING = ("_", "max_window_layers", "summary_")
"""Beginnings of names that hold such a part and decide nothing that a decoder computes; which
layers have a window stands in `layer_types`."""

_STRETCHED = ("dynamic", "longrope")
"""Kinds of rotary positions that depend on the longest text that a model is made for."""

_NARROW = {torch.float16, torch.bfloat16, torch.float32}


def hash_weights(model: nn.Module) -> str:
    """Returns one SHA-256 over the names, shapes and values of all parameters.

    Floating-point values are hashed as float32, so that the same values stored or loaded in another
    dtype that holds them hash alike. Tied parameters count once.

    Args:
        model: Any module; left unchanged. Values that accelerate keeps elsewhere are read there.

    Returns:
        64 hexadecimal digits.

    Raises:
        NonFiniteError: If a parameter holds NaN or infinity.
    """
    names = sorted(
        name for name, value in model.named_parameters() if not _is_twin(model, name, value)
    )
    digests = {}
    # Weights that are kept elsewhere are brought here one at a time, whoever else is reading.
    for name in names:
        if model.get_parameter(name).is_meta:
            digests[name] = _hash_parameter(name, read_weight(model, name))
    here = [name for name in names if name not in digests]
    # Hashing releases the interpreter lock.
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda name: _hash_parameter(name, model.get_parameter(name)), here)
        digests |= dict(zip(here, made, strict=True))
    return hashlib.sha256("\n".join(digests[name] for name in names).encode()).hexdigest()


def _is_twin(model: nn.Module, name: str, value: Tensor) -> bool:
    """Says whether a weight that is kept elsewhere is another one's, which then counts."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return value.is_meta and name in tied


def _hash_parameter(name: str, parameter: Tensor) -> str:
    value = parameter.detach()
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise NonFiniteError(f"weight {name} holds NaN or infinity: the model is damaged")
    if value.dtype in _NARROW:
        value = value.to(torch.float32)
    raw = value.cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return f"{name} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"


def deciding_settings(config: PreTrainedConfig | None) -> dict[str, Any]:
    """Returns what of a configuration decides what the same weights compute.

    Args:
        config: Of the language model; None for a model that has none.

    Returns:
        Names and values as JSON would give them back, in the order of names.
    """
    given = {} if config is None else config.get_text_config().to_dict()
    chosen = {
        name: given[name]
        for name in sorted(given)
        if not name.startswith(_NOT_DECIDING) and any(part in name for part in _DECIDING)
    }
    if any(kind in str(chosen) for kind in _STRETCHED):
        chosen["max_position_embeddings"] = given.get("max_position_embeddings")
    # A limit may be infinite, which JSON has no number for.
    written = json.dumps(chosen, default=str, sort_keys=True)
    found: dict[str, Any] = json.loads(written, parse_constant=str)
    return found


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns one SHA-256 over a fast tokenizer's vocabulary, rules and chat template.

    Padding and truncation, which every call may change, do not count.

    Args:
        tokenizer: A fast tokenizer; left unchanged.

    Returns:
        64 hexadecimal digits.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules |= {"padding": None, "truncation": None}
    whole = {"rules": rules, "chat_template": tokenizer.chat_template}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
