"""Copies of models whose weights may change, and taking a direction out of what a module makes."""

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from isthmus.core.errors import ModelError
from isthmus.models.language_model import LanguageModel
from isthmus.models.placement import require_one_device
from isthmus.models.writers import is_experts

ADVICE = "edit it while it runs (isthmus generate), or use a model of docs/models.md"
"""What to do where nothing can be baked."""


def copy_with_own_weights(lm: LanguageModel) -> PreTrainedModel:
    """Copies a model so that no two modules share a weight, and a saved copy keeps all of them.

    Args:
        lm: The model; left unchanged.

    Returns:
        A copy of the same class that computes the same.

    Raises:
        ModelError: If weights are quantized, adapted or on several devices, or a whole module is
            shared.
    """
    require_one_device(lm.model, "bake an edit into")
    adapted = next((n for n, _ in lm.model.named_parameters() if ".lora_" in n), None)
    if adapted is not None:
        raise ModelError(f"{adapted} is an adapter's: merge it first (merge_and_unload of peft)")
    coarse = next((n for n, p in lm.model.named_parameters() if not p.is_floating_point()), None)
    if coarse is not None:
        raise ModelError(f"{coarse} is quantized: load the model in bfloat16 or float32")
    model = copy.deepcopy(lm.model)
    while (shared := _shared_weight(model)) is not None:
        path, _, own = shared.rpartition(".")
        module = model.get_submodule(path)
        weight = module.get_parameter(own).detach().clone()
        setattr(module, own, nn.Parameter(weight, requires_grad=False))
        if _shared_weight(model) == shared:
            raise ModelError(
                f"{path} is one module at several places of {type(model).__name__}, which a saved "
                f"copy would lose; {ADVICE}"
            )
    # The setting that ties the head ties whatever else a class shares.
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    return model


def _shared_weight(model: PreTrainedModel) -> str | None:
    """Names a weight that another module, named before, has as well."""
    seen: set[int] = set()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) in seen:
            return name
        seen.add(id(weight))
    return None


def project_out(module: nn.Module, name: str, basis: Float[Tensor, "rank d_model"]) -> None:
    """Takes the span of orthonormal rows out of everything that a module makes, in place.

    W becomes W - Qᵀ Q W and b becomes b - Qᵀ Q b.

    Args:
        module: A matrix or the experts of a mixture.
        name: Its dotted path, for the message.
        basis: Q, the rows.

    Raises:
        ModelError: If the experts' matrices have an unknown shape.
    """
    for weight, axis in _weights(module, basis.shape[1], name):
        _project(weight, axis, basis)


def _weights(module: nn.Module, d_model: int, name: str) -> Iterator[tuple[nn.Parameter, int]]:
    """Yields the parameters that make a module's output, with the axis of the output in each."""
    if is_experts(module):
        weight: nn.Parameter = module.get_parameter("down_proj")
        yield weight, _expert_axis(module, weight, d_model, name)
        biases = dict(module.named_parameters(recurse=False))
        if "down_proj_bias" in biases:
            yield biases["down_proj_bias"], 1
        return
    weight = module.get_parameter("weight")
    yield weight, 1 if isinstance(module, Conv1D | nn.Embedding) else 0
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        yield bias, 0


def _expert_axis(module: nn.Module, weight: Tensor, d_model: int, name: str) -> int:
    axis = 2 if getattr(module, "is_transposed", False) else 1
    if weight.ndim != 3 or weight.shape[axis] != d_model:
        raise ModelError(
            f"{name}.down_proj has shape {list(weight.shape)}, expected [experts, {d_model}, "
            f"width] for the experts' writing matrices; {ADVICE}"
        )
    return axis


def _project(weight: nn.Parameter, axis: int, basis: Tensor) -> None:
    """Takes the span of orthonormal rows out of one axis of a weight, in place."""
    wide = weight.detach().movedim(axis, -1).to(torch.promote_types(weight.dtype, torch.float32))
    rows = basis.to(wide)
    clean = wide - wide @ rows.mT @ rows
    weight.data.copy_(clean.movedim(-1, axis))
