"""A direction ablated in the weights: no matrix writes along it to the residual stream any more.

1. The head is untied from the embedding, so that reading stays as it was.
2. Embedding rows, the output matrices of attention and feed-forward part, and their biases lose
   their component along r: W ← W - r rᵀ W.
3. Where something stands between a matrix and the stream (a norm, positions that are added, several
   experts) no change of weights does what the ablation does, and the model is refused.

Source: Arditi et al. 2024, arXiv:2406.11717, section 4.1.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.core.errors import ModelError, NonFiniteError, ShapeError
from isthmus.core.sites import Site, Stream
from isthmus.models.language_model import LanguageModel, wrap_language_model
from isthmus.models.layouts import BlockLayout, ModelLayout, find_parts


def writer_sites(layout: ModelLayout) -> tuple[Site, ...]:
    """Returns where everything that enters the residual stream can be edited one by one.

    Args:
        layout: Of a model whose blocks add their parts as they are.

    Returns:
        The input of the first block, and what attention and feed-forward part of every block add.

    Raises:
        SiteError: If a block's additions cannot be told apart.
    """
    added = [
        Site(layer, stream)
        for layer in range(layout.n_layers)
        for stream in (Stream.ATTN_OUT, Stream.MLP_OUT)
    ]
    for site in added:
        layout.module_at(site)
    return (Site(0, Stream.RESID_PRE), *added)


def why_not_in_weights(layout: ModelLayout) -> str | None:
    """Says why an ablation of this model is no edit of its weights, or None if it is one.

    Args:
        layout: Of the model.

    Returns:
        The first obstacle, for people.
    """
    if layout.embedding_scale is None:
        return (
            "more than the token embedding enters its first block (positions that are added, or a "
            "norm)"
        )
    return next((said for block in layout.blocks if (said := _obstacle(block))), None)


def _obstacle(block: BlockLayout) -> str | None:
    if block.reason:
        return block.reason
    if not block.has_all_writers:
        return (
            f"{block.name} has no single matrix that writes for its attention and one for its MLP"
        )
    behind = [writer.name for writer in block.writers if not writer.is_exact]
    return f"a norm stands between {behind[0]} and the residual stream" if behind else None


def ablate_weights(lm: LanguageModel, direction: Float[Tensor, " d_model"]) -> LanguageModel:
    """Returns a copy of a model that cannot write along a direction, W ← W - r rᵀ W.

    With r = v / |v|, for the rows of the embedding and for the output matrix and bias of every
    attention and feed-forward part; the head is untied first. What it computes is what the model
    computes while everything that enters the residual stream, at every token, is ablated; in
    float32 to rounding. The copy is another model: its identity differs.

    Source: Arditi et al. 2024, arXiv:2406.11717, section 4.1 and appendix E.

    Args:
        lm: The model; left unchanged.
        direction: v, of any length but zero.

    Returns:
        The copy, as large as the model.

    Raises:
        ModelError: If the ablation is no edit of this model's weights; the message says why.
        ShapeError: If the direction has another width than the model, or is zero.
        NonFiniteError: If the direction holds NaN or infinity.
    """
    if (reason := why_not_in_weights(lm.layout)) is not None:
        raise ModelError(
            f"an ablation is no edit of the weights of {lm.identity.name}: {reason}. Ablate its "
            "activations while it runs"
        )
    unit = _unit(direction, lm.d_model)
    copied = copy.deepcopy(lm.model)
    parts = find_parts(copied)
    _untie(parts.embedding, parts.lm_head)
    for config in {id(c): c for c in (copied.config, copied.config.get_text_config())}.values():
        # Loading or saving would tie them again.
        config.tie_word_embeddings = False
    _project_rows(parts.embedding.get_parameter("weight"), unit)
    for writer in (writer for block in lm.layout.blocks for writer in block.writers):
        _project_writer(copied.get_submodule(writer.name), unit)
    return wrap_language_model(copied, lm.tokenizer, f"{lm.identity.name} without a direction")


def _unit(direction: Float[Tensor, " d_model"], d_model: int) -> Float[Tensor, " d_model"]:
    if direction.shape != (d_model,):
        raise ShapeError(
            f"a direction of shape {list(direction.shape)}, the model has width {d_model}: carry "
            "it there through a map first"
        )
    if not bool(torch.isfinite(direction).all()):
        raise NonFiniteError("the direction holds NaN or infinity: learn it from finite states")
    norm = direction.double().norm()
    if not bool(norm > 0):
        raise ShapeError("the direction is zero and points nowhere: learn it from other prompts")
    unit: Tensor = direction.double() / norm
    return unit


def _untie(embedding: nn.Module, head: nn.Module) -> None:
    own, shared = embedding.get_parameter("weight"), head.get_parameter("weight")
    if shared is own or shared.data_ptr() == own.data_ptr():
        head.weight = nn.Parameter(own.detach().clone(), requires_grad=False)


def _project_writer(module: nn.Module, unit: Float[Tensor, " d_model"]) -> None:
    weight = module.get_parameter("weight")
    # The weight of transformers' Conv1D is transposed: its rows are inputs.
    _project_rows(weight.T if isinstance(module, nn.Linear) else weight, unit)
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        _project_rows(bias[None], unit)


@torch.no_grad()
def _project_rows(rows: Float[Tensor, "row d_model"], unit: Float[Tensor, " d_model"]) -> None:
    """Takes the component along `unit` out of every row, in place, computed in float64."""
    exact = rows.double()
    direction = unit.to(exact.device)
    rows.copy_((exact - (exact @ direction)[:, None] * direction).to(rows.dtype))
