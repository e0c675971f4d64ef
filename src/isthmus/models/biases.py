"""Gives matrices biases that a saved model keeps: by its own settings, or as another class.

A bias that is only hung onto a module is written by `save_pretrained` and dropped by
`from_pretrained` without an error, so a bias counts only where the class itself makes one.
"""

import copy

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

_SETTINGS = ("mlp_bias", "attention_bias", "use_bias", "conv_bias", "bias")
"""What configurations call the switch for biases of the matrices that write."""

_LLAMA_IN_ALL_BUT_NAME = ("mistral", "qwen2")

_SHARED_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "head_dim",
)


def switch_on_bias(model: PreTrainedModel, name: str) -> bool:
    """Gives a matrix a bias of zeros if a setting of the model's class can.

    Args:
        model: Changed in place: its configuration, and zeros as biases of every matrix that the
            same setting concerns.
        name: Dotted path of the matrix.

    Returns:
        Whether it has a bias now.
    """
    if getattr(model.get_submodule(name), "bias", None) is not None:
        return True
    own = set(model.state_dict())
    for setting in _SETTINGS:
        if getattr(model.config, setting, True) is not False:
            continue
        config = copy.deepcopy(model.config)
        setattr(config, setting, True)
        with torch.device("meta"):
            other = type(model)(config).state_dict()
        added = set(other) - own
        if f"{name}.bias" in added and own <= set(other) and _are_biases(added):
            setattr(model.config, setting, True)
            for one in added:
                _hang_zeros(model, one, other[one].shape)
            return True
    return False


def as_llama(model: PreTrainedModel) -> LlamaForCausalLM | None:
    """Rebuilds a model as a Llama, whose class has the biases that its own lacks.

    Args:
        model: Left unchanged.

    Returns:
        A model that computes the same, with biases of zero on all matrices; None if it is not a
        Llama in all but name, as with sliding windows.
    """
    config = model.config
    windows = {one for one in getattr(config, "layer_types", None) or () if "sliding" in one}
    has_window = bool(windows) or (
        config.model_type == "mistral" and getattr(config, "sliding_window", None) is not None
    )
    if config.model_type not in _LLAMA_IN_ALL_BUT_NAME or has_window:
        return None
    given = config.to_dict()
    kept = {name: given[name] for name in _SHARED_SETTINGS if name in given}
    llama_config = LlamaConfig(
        **kept, attention_bias=True, mlp_bias=True, tie_word_embeddings=False
    )
    # Building draws random weights, which must not move the caller's generator.
    with torch.random.fork_rng():
        llama = LlamaForCausalLM(llama_config)
    nn.Module.to(llama, device=model.device, dtype=model.dtype)
    found = llama.load_state_dict(model.state_dict(), strict=False)
    if found.unexpected_keys or not _are_biases(found.missing_keys):
        return None
    for one in found.missing_keys:
        nn.init.zeros_(llama.get_parameter(one))
    llama.generation_config = copy.deepcopy(model.generation_config)
    llama.eval()
    llama.requires_grad_(requires_grad=False)
    return llama


def _are_biases(names: set[str] | list[str]) -> bool:
    return all(name.endswith(".bias") for name in names)


def _hang_zeros(model: PreTrainedModel, name: str, shape: torch.Size) -> None:
    module = model.get_submodule(name.removesuffix(".bias"))
    weight = module.get_parameter("weight")
    zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    module.bias = nn.Parameter(zeros, requires_grad=False)
