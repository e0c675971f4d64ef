"""Hashes by which a model and its tokenizer are recognised wherever they were loaded from."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from isthmus.core.errors import NonFiniteError

_NARROW = {torch.float16, torch.bfloat16, torch.float32}


def hash_weights(model: nn.Module) -> str:
    """Returns one SHA-256 over the names, shapes and values of all parameters.

    Floating-point values are hashed as float32, so that the same values stored or loaded in another
    dtype that holds them hash alike. Tied parameters count once.

    Args:
        model: Any module; left unchanged.

    Returns:
        64 hexadecimal digits.

    Raises:
        NonFiniteError: If a parameter holds NaN or infinity.
    """
    named = sorted(model.named_parameters(), key=lambda pair: pair[0])
    # Hashing releases the interpreter lock.
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda pair: _hash_parameter(*pair), named))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _hash_parameter(name: str, parameter: Tensor) -> str:
    value = parameter.detach()
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise NonFiniteError(f"weight {name} holds NaN or infinity: the model is damaged")
    if value.dtype in _NARROW:
        value = value.to(torch.float32)
    raw = value.cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return f"{name} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()}"


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
