"""Writes an edit of the residual stream into a model's weights: the same behaviour without hooks.

1. The model is copied; its head gets weights of its own if it shared the embedding's.
2. Ablation takes the direction out of every matrix that writes to the stream. An addition is put
   into the bias of the last matrix before its site.
3. The copy is run on a few tokens: its stream and its logits must be those of the edited model.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ModelError, NonFiniteError, ShapeError
from isthmus.core.sites import GivenSite, Site, Stream
from isthmus.models.biases import as_llama, switch_on_bias
from isthmus.models.hooks import capturing, editing
from isthmus.models.language_model import LanguageModel
from isthmus.models.layouts import ModelLayout, ResidualWriter
from isthmus.models.placement import require_one_device
from isthmus.models.probing import find_layout, probe_tokens
from isthmus.models.weight_edits import ADVICE, copy_with_own_weights, project_out
from isthmus.models.writers import is_experts

_ROUNDING = 64
_SHARE_OF_EFFECT = 0.01
_DEPENDENT = 1e-6
"""What of a unit vector is left beside others, below which it adds nothing to them."""


def bake_ablation(
    lm: LanguageModel, direction: Float[Tensor, " d_model"] | Float[Tensor, "rank d_model"]
) -> PreTrainedModel:
    """Takes a direction, or a subspace, out of all that a model writes to its residual stream.

    With the unit vector r of the direction, every writing matrix W becomes W - r rᵀ W and its bias
    b becomes b - r rᵀ b; with the orthonormal rows Q of a subspace, W - Qᵀ Q W and b - Qᵀ Q b. That
    equals ablating it in the stream at every position before the first block and after each part of
    every block. Only the embedding, learned positions and the last matrix of each part change.
    Source: Arditi et al. 2024, arXiv:2406.11717, section 4.1.

    Args:
        lm: The model; left unchanged.
        direction: What to take out: one vector of any length but zero, or several that span a
            subspace.

    Returns:
        A copy of the model, of the same class, that can be saved and loaded like any other.

    Raises:
        ModelError: If a matrix that writes was not found, a norm stands between one and the stream,
            or weights are quantized or adapted; the message says which.
        ShapeError: If the direction does not fit the model or is zero, vectors of a subspace depend
            on each other, or nothing of the stream would be left.
        NonFiniteError: If it holds NaN or infinity.
    """
    basis = _basis(direction, lm)
    writers = exact_writers(lm.layout)
    model = copy_with_own_weights(lm)
    sites, hidden = _editable(lm.layout)
    _take_out(model, hidden, basis)
    layout = find_layout(model) if hidden else lm.layout
    plain, expected = _logits(lm.layout), _logits(layout, _Ablation(basis), sites)
    _take_out(model, [one for one in writers if one not in hidden], basis)
    baked = find_layout(model)
    _check_ablated(lm, baked, basis)
    if (_logits(baked) - expected).abs().max() > _allowed(plain, expected, lm.dtype):
        raise ModelError(
            f"cannot bake an ablation into {type(model).__name__}: its logits are not those of the "
            "model whose stream is edited, something reads a matrix past the stream; "
            f"{ADVICE}"
        )
    return model


def _editable(layout: ModelLayout) -> tuple[list[Site], list[ResidualWriter]]:
    """Returns where all that enters the stream can be edited, and the writers that are left."""
    sites, hidden = [Site(0, Stream.RESID_PRE)], list[ResidualWriter]()
    for layer, block in enumerate(layout.blocks):
        if block.attn is not None and block.mlp is not None:
            sites += [Site(layer, Stream.ATTN_OUT), Site(layer, Stream.MLP_OUT)]
        elif len(block.writers) == 1:
            sites.append(Site(layer))
        else:
            hidden += block.writers
    return sites, hidden


def _take_out(model: PreTrainedModel, writers: Sequence[ResidualWriter], basis: Tensor) -> None:
    for writer in writers:
        project_out(model.get_submodule(writer.name), writer.name, basis)


def _basis(direction: Tensor, lm: LanguageModel) -> Float[Tensor, "rank d_model"]:
    """Returns orthonormal rows that span what is taken out."""
    rows = [_checked("direction", row, lm) for row in torch.atleast_2d(direction)]
    if not rows or not all(bool(row.any()) for row in rows):
        raise ShapeError("the direction is zero and so is none: learn it from other prompts")
    if len(rows) >= lm.d_model:
        raise ShapeError(
            f"{len(rows)} vectors to take out of a stream of width {lm.d_model}: at most "
            f"{lm.d_model - 1} leave something of it"
        )
    across, triangle = torch.linalg.qr(torch.stack([row / row.norm() for row in rows]).mT)
    if float(triangle.diagonal().abs().min()) < _DEPENDENT:
        raise ShapeError(
            f"{len(rows)} vectors span fewer dimensions than that: leave out those that others "
            "add up to"
        )
    basis: Tensor = across.mT
    return basis


def writer_sites(layout: ModelLayout) -> tuple[Site, ...]:
    """Returns where everything that enters the residual stream can be edited one by one.

    Ablating a direction at all of these equals `bake_ablation` of it.

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


def bake_addition(
    lm: LanguageModel, site: GivenSite, vector: Float[Tensor, " d_model"]
) -> PreTrainedModel:
    """Adds a vector to the stream at one site and every position, as a bias.

    The vector goes into the bias of the last matrix before the site, divided by the factor that the
    model puts behind it; before the first block, into every row of the token embedding. A class
    whose setting for biases is off gets it switched on. A Mistral without sliding windows or a
    Qwen2, whose classes have no such setting, comes back as the Llama that computes the same.

    Args:
        lm: The model; left unchanged.
        site: Where, in any spelling that `core.sites` accepts.
        vector: What to add, strength included.

    Returns:
        A copy of the model that can be saved and loaded like any other.

    Raises:
        ModelError: If no class of transformers has a bias there, a norm or a gate stands between,
            or weights are quantized or adapted; the message says which.
        SiteError: If the model does not have the site.
        ShapeError: If the vector does not fit the model.
        NonFiniteError: If it holds NaN or infinity.
    """
    where = lm.site(site)
    require_one_device(lm.model, "bake an edit into")
    wide = _checked("vector", vector, lm)
    plain, expected = _logits(lm.layout), _logits(lm.layout, _Shift(wide), [where])
    allowed = _allowed(plain, expected, lm.dtype)
    reasons: list[str] = []
    for layout, copied in _houses(lm, where):
        for writer in _writers_before(layout, where):
            model = copied()
            if reason := _shift(model, writer, wide, layout.embedding_scale):
                reasons.append(reason)
            elif (_logits(find_layout(model)) - expected).abs().max() <= allowed:
                return model
            else:
                reasons.append(f"a bias of {writer.name} acts on more than {where}")
    name = type(lm.model).__name__
    why = "; ".join(dict.fromkeys(reasons)) or "no matrix that writes there was found"
    raise ModelError(f"cannot bake an addition at {where} into {name}: {why}; {ADVICE}")


@dataclass(frozen=True)
class _Shift:
    """Adds one vector."""

    vector: Tensor

    @property
    def d_model(self) -> int:
        return len(self.vector)

    def __call__(self, activations: Tensor) -> Tensor:
        dtype = torch.promote_types(activations.dtype, torch.float32)
        moved = activations.to(dtype) + self.vector.to(activations.device, dtype)
        return moved.to(activations.dtype)


@dataclass(frozen=True)
class _Ablation:
    """Takes the span of orthonormal rows out."""

    basis: Tensor

    @property
    def d_model(self) -> int:
        return self.basis.shape[1]

    def __call__(self, activations: Tensor) -> Tensor:
        wide = activations.to(torch.promote_types(activations.dtype, torch.float32))
        basis = self.basis.to(wide)
        return (wide - wide @ basis.mT @ basis).to(activations.dtype)


def _allowed(plain: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns how far logits of a baked model may be from those of an edited one."""
    effect = (expected - plain).abs().max()
    return _SHARE_OF_EFFECT * effect + _ROUNDING * torch.finfo(dtype).eps * expected.abs().max()


def _houses(
    lm: LanguageModel, site: Site
) -> Iterator[tuple[ModelLayout, Callable[[], PreTrainedModel]]]:
    """Yields models that compute the same and may have a bias at the site, and their copies."""
    yield lm.layout, partial(copy_with_own_weights, lm)
    if site != Site(0, Stream.RESID_PRE) and (llama := as_llama(lm.model)) is not None:
        yield find_layout(llama), partial(copy.deepcopy, llama)


def _writers_before(layout: ModelLayout, site: Site) -> tuple[ResidualWriter, ...]:
    """Lists the writers whose bias may be an addition at a site, the likeliest first."""
    if site == Site(0, Stream.RESID_PRE):
        return layout.stream_writers
    layer = site.layer - (site.stream is Stream.RESID_PRE)
    writers = layout.blocks[layer].writers
    if site.stream is Stream.ATTN_OUT:
        return writers[:1]
    last_first = writers[::-1]
    return last_first[: len(writers) - 1] if site.stream is Stream.MLP_OUT else last_first


def _shift(
    model: PreTrainedModel, writer: ResidualWriter, vector: Tensor, embedding_scale: float | None
) -> str:
    """Puts a vector into the bias of one writer, in place; returns why it cannot, if so."""
    module = model.get_submodule(writer.name)
    if writer.norm:
        return _shift_norm(model, writer, vector)
    if writer.scale is None:
        return f"a gate decides for every token how much of {writer.name} is added"
    scale, bias = writer.scale, "bias"
    if isinstance(module, nn.Embedding):
        scale, bias = embedding_scale or writer.scale, "weight"
    elif is_experts(module):
        bias = "down_proj_bias"
    else:
        switch_on_bias(model, writer.name)
    if not isinstance(getattr(module, bias, None), nn.Parameter):
        return f"{writer.name} has no bias and {type(model).__name__} no setting that gives it one"
    _add(module.get_parameter(bias), vector / scale)
    return ""


def _shift_norm(model: PreTrainedModel, writer: ResidualWriter, vector: Tensor) -> str:
    name = writer.norm
    norm = model.get_submodule(name)
    bias = getattr(norm, "bias", None)
    if not isinstance(bias, nn.Parameter):
        return f"{writer.name} writes through {name} ({type(norm).__name__}), which has no bias"
    _add(bias, vector)
    return ""


def _add(parameter: nn.Parameter, vector: Tensor) -> None:
    wide = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
    parameter.data.copy_(wide + vector.to(wide))


def _logits(
    layout: ModelLayout, edit: _Shift | _Ablation | None = None, sites: Sequence[Site] = ()
) -> Tensor:
    """Returns the logits of the probe, under an edit of every position at some sites."""
    tokens = probe_tokens(layout.embedding)
    everywhere = torch.ones_like(tokens, dtype=torch.bool).cpu()
    placed = [PlacedEdit(site, edit, everywhere, everywhere[:, 0]) for site in sites if edit]
    with editing(layout, placed), torch.no_grad():
        mask = torch.ones_like(tokens)
        made = layout.root(input_ids=tokens, attention_mask=mask, use_cache=False)
    logits: Tensor = made.logits.double()
    return logits


def exact_writers(layout: ModelLayout) -> tuple[ResidualWriter, ...]:
    """Lists every matrix that writes to the residual stream, the embedding's first.

    Args:
        layout: Of the model.

    Returns:
        All writers; what they make is added as it is, or times a factor that they do not change.

    Raises:
        ModelError: If one was not found or a norm stands between one and the stream.
    """
    name = type(layout.root).__name__
    if not layout.stream_writers:
        raise ModelError(
            f"cannot bake into {name}: the matrices whose rows begin the residual stream were not "
            "found: no one, two or three of the embeddings before the first block add up to its "
            f"input; {ADVICE}"
        )
    for block in layout.blocks:
        if block.missing:
            raise ModelError(f"cannot bake into {name}: {block.missing}; {ADVICE}")
    for writer in layout.writers:
        if writer.norm:
            kind = type(layout.root.get_submodule(writer.norm)).__name__
            raise ModelError(
                f"cannot bake an ablation into {name}: {writer.name} writes through {writer.norm} "
                f"({kind}), which rescales by all coordinates, so that no change of the matrix is "
                f"one of the stream; {ADVICE}"
            )
    return layout.writers


def _checked(what: str, vector: Tensor, lm: LanguageModel) -> Tensor:
    if vector.ndim != 1 or len(vector) != lm.d_model:
        raise ShapeError(
            f"the {what} has shape {list(vector.shape)}, {lm.identity.name} is {lm.d_model} wide: "
            "carry it through a map first"
        )
    wide = vector.detach().double().cpu()
    if not bool(wide.isfinite().all()):
        raise NonFiniteError(f"the {what} holds NaN or infinity: compute it from finite states")
    return wide


def _check_ablated(lm: LanguageModel, layout: ModelLayout, basis: Tensor) -> None:
    """Refuses a model whose stream still has a part along the direction."""
    streams = [Stream.RESID_PRE, Stream.RESID_POST]
    sites = [Site(layer, stream) for layer in range(lm.n_layers) for stream in streams]
    for site, states in _probe(layout, sites).items():
        wide = states.double()
        along = (wide @ basis.to(wide).mT).abs().max()
        # Some keep a stream in float32 beside weights that are rounded to fewer digits.
        eps = max(torch.finfo(dtype).eps for dtype in (states.dtype, lm.dtype))
        allowed = _ROUNDING * eps * wide.norm(dim=-1).max()
        if float(along) > float(allowed):
            raise ModelError(
                f"cannot bake an ablation into {type(layout.root).__name__}: {site} still has "
                f"{along:.2g} along the direction, something else than the matrices that were "
                f"found writes to the stream; {ADVICE}"
            )


def _probe(layout: ModelLayout, sites: Sequence[Site]) -> dict[Site, Tensor]:
    with capturing(layout, sites) as captured, torch.no_grad():
        tokens = probe_tokens(layout.embedding)
        layout.root(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        return dict(captured)
