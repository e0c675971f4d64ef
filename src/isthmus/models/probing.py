"""Finds by a tiny forward pass what the module tree does not say.

1. Run a few random tokens; record every block, its direct children and its matrices.
2. In each block, take the two children a, m with input + a + m = output: attention's and the
   feed-forward part's addition.
3. A matrix inside such a child whose output is the addition writes exactly; one whose output only
   enters it (a norm) does not.
4. Run again with another last token: what comes before it must not change.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from isthmus.core.errors import ModelError, NonFiniteError
from isthmus.models.calls import Call
from isthmus.models.hooks import recording
from isthmus.models.layouts import (
    BlockLayout,
    DecoderParts,
    ModelLayout,
    ResidualWriter,
    find_parts,
)
from isthmus.models.placement import device_of, weights_at_hand
from isthmus.models.writers import (
    ROUNDING_STEPS,
    candidate_names,
    find_writers,
    is_matrix,
    is_same,
    rounding_steps,
)

_N_ROWS, _N_POSITIONS = 2, 5

_N_CHANGES = 3
"""Last tokens that are tried: in a model that is not causal each changes earlier states."""

_REGROUPED = 3e-5
"""Rounding, of the states' size, that is no sign of a later token: experts multiply the tokens that
are sent to them together, so that another last token changes the order of sums for all."""


@dataclass(frozen=True)
class _Trace:
    """What one forward pass computed: calls by the module's dotted path, in the order they end."""

    calls: Mapping[str, Call]

    def given(self, name: str) -> Tensor | None:
        return self.calls[name].given if name in self.calls else None

    def made(self, name: str) -> Tensor | None:
        return self.calls[name].made if name in self.calls else None

    def block(self, name: str) -> tuple[Tensor, Tensor]:
        given, made = self.given(name), self.made(name)
        if given is None or made is None:
            raise ModelError(f"block {name} reads or returns no tensor: not a supported decoder")
        return given, made

    def under(self, name: str) -> list[str]:
        return [other for other in self.calls if other.startswith(f"{name}.")]


def find_layout(model: nn.Module) -> ModelLayout:
    """Finds the blocks, sites and residual writers of any decoder-only language model.

    Args:
        model: A transformers causal language model in evaluation mode; left unchanged.

    Returns:
        Modules and sites, checked on a forward pass.

    Raises:
        ModelError: If it is no decoder-only language model; the message names what is missing.
    """
    parts = find_parts(model)
    token_ids = probe_tokens(parts.embedding)
    trace = _run(parts, token_ids)
    d_model = _check_shapes(parts, trace)
    _check_causality(parts, token_ids, trace)
    blocks = tuple(_block_layout(parts, trace, name) for name in parts.blocks)
    return ModelLayout(
        root=parts.root,
        embedding=parts.embedding,
        embedding_scale=_embedding_scale(parts, token_ids, trace),
        stream_writers=_stream_writers(parts, trace),
        blocks=blocks,
        final_norm=_find_final_norm(parts, trace),
        lm_head=parts.lm_head,
        d_model=d_model,
        writes_in_place=any(trace.calls[name].was_overwritten for name in _sites_of(blocks)),
    )


def probe_tokens(embedding: nn.Module) -> Int[Tensor, "batch pos"]:
    """Draws the few tokens on which a model is probed; always the same for one vocabulary.

    Args:
        embedding: Of the model.

    Returns:
        Token ids on the embedding's device.
    """
    weight = next(embedding.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = (_N_ROWS, _N_POSITIONS)
    drawn = torch.randint(0, weight.shape[0], shape, generator=generator)
    return drawn.to(device_of(embedding))


def _run(parts: DecoderParts, token_ids: Int[Tensor, "batch pos"]) -> _Trace:
    children = {f"{name}.{c}" for name, b in parts.blocks.items() for c, _ in b.named_children()}
    inside = tuple(f"{name}." for name in parts.blocks)
    watched = {
        name: module
        for name, module in parts.root.named_modules()
        if name in children
        or is_matrix(module)
        or _is_norm(module)
        or (name and not name.startswith(inside))
    }
    with recording(watched) as calls, torch.no_grad():
        mask = torch.ones_like(token_ids)
        parts.root(input_ids=token_ids, attention_mask=mask, use_cache=False)
    return _Trace(calls)


def _sites_of(blocks: Sequence[BlockLayout]) -> Iterator[str]:
    """Names every module at which activations are read."""
    for block in blocks:
        yield block.name
        for name, child in block.module.named_children():
            if child is block.attn or child is block.mlp:
                yield f"{block.name}.{name}"


def _check_shapes(parts: DecoderParts, trace: _Trace) -> int:
    shapes: set[tuple[int, ...]] = set()
    for name in parts.blocks:
        shapes |= {tuple(value.shape) for value in trace.block(name)}
        if (n_calls := trace.calls[name].n_calls) > 1:
            raise ModelError(
                f"{type(parts.root).__name__} runs block {name} {n_calls} times in a pass, so that "
                "a layer has several states: load a decoder that runs every block once"
            )
    shape = next(iter(shapes))
    if len(shapes) != 1 or shape[:-1] != (_N_ROWS, _N_POSITIONS):
        raise ModelError(
            f"the blocks of {type(parts.root).__name__} read or return {sorted(shapes)}, "
            f"expected one shape [{_N_ROWS}, {_N_POSITIONS}, d_model]: not a supported decoder"
        )
    return shape[-1]


def _check_causality(
    parts: DecoderParts, token_ids: Int[Tensor, "batch pos"], trace: _Trace
) -> None:
    last = list(parts.blocks)[-1]
    before = trace.block(last)[1][:, :-1].float()
    if not bool(torch.isfinite(before).all()):
        raise NonFiniteError(
            f"the activations of {type(parts.root).__name__} hold NaN or infinity on a probe: "
            "its weights overflow, load it in another type or use another model"
        )
    rounding = max(8 * torch.finfo(trace.block(last)[1].dtype).eps, _REGROUPED)
    least = rounding * float(before.abs().mean())
    for step in range(1, _N_CHANGES + 1):
        changed = token_ids.clone()
        changed[:, -1] = (changed[:, -1] + step) % next(parts.embedding.parameters()).shape[0]
        after = _run(parts, changed).block(last)[1][:, :-1].float()
        if torch.allclose(before, after, rtol=rounding, atol=least):
            break
    else:
        raise ModelError(
            f"{type(parts.root).__name__} is not causal (a later token changes earlier "
            "activations): load a decoder-only causal language model of transformers"
        )


def _embedding_scale(
    parts: DecoderParts, token_ids: Int[Tensor, "batch pos"], trace: _Trace
) -> float | None:
    given = trace.block(next(iter(parts.blocks)))[0]
    with weights_at_hand(parts.embedding):
        weight = next(parts.embedding.parameters()).detach()
        rows = weight[token_ids.to(weight.device)].cpu()
    if rows.shape != given.shape:
        return None
    scale = float((given.double() * rows.double()).sum() / rows.double().square().sum())
    is_scaled = rounding_steps(given, scale * rows.double()) <= ROUNDING_STEPS
    return scale if is_scaled else None


def _is_norm(module: nn.Module) -> bool:
    own = [parameter.ndim for parameter in module.parameters(recurse=False)]
    return bool(own) and max(own) == 1


def _stream_writers(parts: DecoderParts, trace: _Trace) -> tuple[ResidualWriter, ...]:
    inside = tuple(f"{name}." for name in parts.blocks)
    first = next(iter(parts.blocks))
    head = {name for name, module in parts.root.named_modules() if module is parts.lm_head}
    outside = {
        name: call
        for name, call in trace.calls.items()
        if name not in parts.blocks and name not in head and not name.startswith(inside)
    }
    modules = dict(parts.root.named_modules())
    return find_writers(outside, modules, None, trace.block(first)[0])


def _block_layout(parts: DecoderParts, trace: _Trace, name: str) -> BlockLayout:
    block = parts.blocks[name]
    modules: dict[str, nn.Module] = dict(parts.root.named_modules())
    pair = _find_added(trace, name)
    writers, missing = _find_block_writers(trace, name, pair, modules)
    if pair is None:
        reason = (
            f"no two parts of {name} ({type(block).__name__}) are added to the residual stream as "
            "they are (it has one part, a multiplier or a norm follows, or a part adds the stream)"
        )
        return BlockLayout(name, block, None, None, writers, missing, reason)
    return BlockLayout(name, block, modules[pair[0]], modules[pair[1]], writers, missing, reason="")


def _find_block_writers(
    trace: _Trace, block: str, pair: tuple[str, str] | None, modules: Mapping[str, nn.Module]
) -> tuple[tuple[ResidualWriter, ...], str]:
    """Returns the writers of a block, and what is missing among them."""
    found = [] if pair is None else [_find_writer(trace, block, part, modules) for part in pair]
    if pair is not None and all(found):
        return tuple(writer for writer in found if writer is not None), ""
    inside = {name: trace.calls[name] for name in trace.under(block)}
    if writers := find_writers(inside, modules, *trace.block(block)):
        return writers, ""
    parts = [part for part, writer in zip(pair or (), found, strict=True) if writer is None]
    where = " and ".join(f"{one} ({type(modules[one]).__name__})" for one in parts or [block])
    seen = ", ".join(one.removeprefix(f"{block}.") for one in candidate_names(inside, modules))
    missing = (
        f"the matrix through which {where} writes to the residual stream was not found: no one, "
        f"two or three of the outputs of its block's matrices ({seen or 'it has none'}) add up "
        "to what the block adds"
    )
    return tuple(writer for writer in found if writer is not None), missing


def _find_added(trace: _Trace, block: str) -> tuple[str, str] | None:
    """Names the two children whose outputs are added; attention ends first in every decoder."""
    given, made = trace.block(block)
    parts: dict[str, Tensor] = {}
    for name in trace.under(block):
        value = trace.made(name)
        if "." in name.removeprefix(f"{block}.") or value is None:
            continue
        if value.shape[-1] == given.shape[-1] and value.numel() == given.numel():
            parts[name] = value.reshape(given.shape)
    errors = {
        (a, m): rounding_steps(made, given, parts[a], parts[m]) for a, m in combinations(parts, 2)
    }
    # Of equally good pairs the first one is taken: an idle dropout repeats its input.
    best = min(errors, key=lambda pair: errors[pair], default=None)
    return best if best is not None and errors[best] <= ROUNDING_STEPS else None


def _find_writer(
    trace: _Trace, block: str, part: str, modules: Mapping[str, nn.Module]
) -> ResidualWriter | None:
    def matrices(names: list[str]) -> list[str]:
        return [name for name in names if is_matrix(modules[name])]

    for name in matrices([*trace.under(part), part]):
        if is_same(trace.made(name), trace.made(part)):
            return ResidualWriter(name, modules[name])
    for name in matrices(trace.under(block)):
        if is_same(trace.made(name), trace.given(part)):
            return ResidualWriter(name, modules[name], norm=part, scale=None)
    return None


def _find_final_norm(parts: DecoderParts, trace: _Trace) -> nn.Module | None:
    last = list(parts.blocks)[-1]
    modules: dict[str, nn.Module] = dict(parts.root.named_modules())
    outside = [n for n in trace.calls if not any(n.startswith(b) for b in parts.blocks)]
    for name in outside:
        made = trace.made(name)
        if isinstance(modules[name], nn.Linear) or made is None:
            continue
        if is_same(trace.given(name), trace.made(last)) and not is_same(made, trace.given(name)):
            return modules[name]
    return None
