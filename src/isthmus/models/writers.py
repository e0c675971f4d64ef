"""Finds the matrices that write to the residual stream in what one forward pass recorded.

1. Candidates are the matrices whose outputs are as wide as the stream, and what norms make of them.
2. The smallest set of candidates that gives what was added, each with a factor per position,
   is what writes. A factor may differ by position: gates and routers do that.
3. A matrix behind which a norm stands does not write exactly, whatever the norm's weights are. A
   norm without weights looks like a gate; its factor is the size of what it was given, inverted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from isthmus.models.calls import Call
from isthmus.models.layouts import ResidualWriter

ROUNDING_STEPS = 4
"""How many rounding errors a sum of recorded tensors may be off."""

_MOST_WRITERS = 3
_SAME = 1e-2


def is_experts(module: nn.Module) -> bool:
    """Says whether a module holds the matrices of all experts of a mixture in one tensor each."""
    return any(p.ndim == 3 for p in module.parameters(recurse=False)) and hasattr(
        module, "down_proj"
    )


def is_matrix(module: nn.Module) -> bool:
    """Says whether a module multiplies by a matrix, or by one of several that a router chooses."""
    return isinstance(module, nn.Linear | Conv1D | nn.Embedding) or is_experts(module)


def rounding_steps(total: Tensor, *terms: Tensor) -> float:
    """Returns max |total - Σ terms| in units of the rounding error that such a sum may have.

    Args:
        total: What was computed.
        *terms: What it should be the sum of, of the same shape.

    Returns:
        How many rounding errors of the total's type it is off.
    """
    exact = [term.double() for term in terms]
    size = torch.stack([term.abs() for term in (*exact, total.double())]).sum(0)
    error = (sum(exact, -total.double())).abs()
    unit = size * torch.finfo(total.dtype).eps
    return float((error / unit.clamp_min(torch.finfo(torch.float64).tiny)).max())


@dataclass(frozen=True)
class _Candidate:
    """A matrix, the norm behind it if there is one, and what they made."""

    name: str
    norm: str | None
    made: Tensor


@dataclass(frozen=True)
class _Mixture:
    """Candidates with the factor of each; None where it differs by position."""

    candidates: tuple[_Candidate, ...]
    scales: tuple[float | None, ...]


def find_writers(
    calls: Mapping[str, Call],
    modules: Mapping[str, nn.Module],
    base: Float[Tensor, "batch pos d_model"] | None,
    total: Float[Tensor, "batch pos d_model"],
) -> tuple[ResidualWriter, ...]:
    """Finds the matrices whose outputs make up what is added to the residual stream.

    Args:
        calls: What the modules among which to look were given and made, by dotted path.
        modules: The modules by dotted path.
        base: The stream before; None where it begins.
        total: The stream after.

    Returns:
        The writers in the order of the forward pass; none if no set of matrices gives the sum.
    """
    candidates = _candidates(calls, modules, total)
    for n in range(1, min(_MOST_WRITERS, len(candidates)) + 1):
        for chosen in combinations(candidates, n):
            # A matrix with and without its norm is one matrix.
            if len({one.name for one in chosen}) < n:
                continue
            if (mixture := _mixture(chosen, base, total)) is not None:
                return _writers(mixture, modules)
    return ()


def candidate_names(calls: Mapping[str, Call], modules: Mapping[str, nn.Module]) -> list[str]:
    """Names the matrices among recorded modules, for messages."""
    return [name for name in calls if is_matrix(modules[name])]


def _candidates(
    calls: Mapping[str, Call], modules: Mapping[str, nn.Module], total: Tensor
) -> list[_Candidate]:
    found: list[_Candidate] = []
    for name in candidate_names(calls, modules):
        made = _fitted(calls[name].made, total)
        if made is None:
            continue
        behind = _norms_behind(calls, modules, name)
        found.extend(
            _Candidate(name, norm, fitted)
            for norm in behind
            if (fitted := _fitted(calls[norm].made, total)) is not None
        )
        found.append(_Candidate(name, None, made))
    return found


def _norms_behind(
    calls: Mapping[str, Call], modules: Mapping[str, nn.Module], matrix: str
) -> list[str]:
    made = calls[matrix].made
    return [
        name
        for name, call in calls.items()
        if not is_matrix(modules[name])
        and is_same(call.given, made)
        and not is_same(call.made, call.given)
        and (any(True for _ in modules[name].parameters(recurse=False)) or _rescales(call))
    ]


def _rescales(call: Call) -> bool:
    """Says whether a module multiplies every position by a number of its own."""
    if call.given is None or call.made is None or call.given.shape != call.made.shape:
        return False
    given, made = call.given.double(), call.made.double()
    factors = (given * made).sum(-1, keepdim=True) / given.square().sum(-1, keepdim=True)
    return rounding_steps(call.made, factors * given) <= ROUNDING_STEPS


def is_same(a: Tensor | None, b: Tensor | None) -> bool:
    """Says whether two recorded tensors are equal but for their shape and a rounding error."""
    if a is None or b is None or a.numel() != b.numel() or a.shape[-1] != b.shape[-1]:
        return False
    return rounding_steps(a.reshape(b.shape), b) <= 1


def _fitted(value: Tensor | None, like: Tensor) -> Tensor | None:
    """Returns a recorded output in the shape of the stream, if it has a row for every position."""
    if value is None or value.shape[-1] != like.shape[-1]:
        return None
    if value.numel() == like.numel():
        return value.reshape(like.shape)
    # Learned positions are looked up once for all rows.
    is_shared = value.numel() * like.shape[0] == like.numel()
    return value.reshape(1, *like.shape[1:]).expand_as(like) if is_shared else None


def _mixture(chosen: Sequence[_Candidate], base: Tensor | None, total: Tensor) -> _Mixture | None:
    matrix = torch.stack([one.made.double() for one in chosen], dim=-1)
    added = total.double() - (0 if base is None else base.double())
    gram, products = matrix.mT @ matrix, matrix.mT @ added[..., None]
    for is_constant in (True, False):
        if is_constant:
            factors = torch.linalg.pinv(gram.sum((0, 1)), hermitian=True) @ products.sum((0, 1))
        else:
            factors = torch.linalg.pinv(gram, hermitian=True) @ products
        if not is_constant and _holds_a_norm(chosen, factors):
            return None
        terms = [one.made * factors[..., i, :] for i, one in enumerate(chosen)]
        if rounding_steps(total, *terms, *([] if base is None else [base])) <= ROUNDING_STEPS:
            return _Mixture(tuple(chosen), _scales(factors, is_constant=is_constant))
    return None


def _holds_a_norm(chosen: Sequence[_Candidate], factors: Tensor) -> bool:
    """Says whether a factor that differs by position is the inverse of what it multiplies."""
    for i, one in enumerate(chosen):
        own = factors[..., i, 0]
        sizes = own * one.made.double().norm(dim=-1)
        is_even = bool(((sizes - sizes.mean()).abs() <= _SAME * sizes.mean().abs()).all())
        if is_even and bool(((own - own.mean()).abs() > _SAME * own.mean().abs()).any()):
            return True
    return False


def _scales(factors: Tensor, *, is_constant: bool) -> tuple[float | None, ...]:
    if is_constant:
        return tuple(factors.flatten().tolist())
    mean = factors.mean((0, 1))
    is_same_everywhere = ((factors - mean).abs() <= _SAME * mean.abs()).all(0).all(0)
    pairs = zip(mean.flatten().tolist(), is_same_everywhere.flatten().tolist(), strict=True)
    return tuple(value if is_one else None for value, is_one in pairs)


def _writers(mixture: _Mixture, modules: Mapping[str, nn.Module]) -> tuple[ResidualWriter, ...]:
    return tuple(
        ResidualWriter(
            one.name,
            modules[one.name],
            norm=one.norm or "",
            scale=None if one.norm is not None else scale,
        )
        for one, scale in zip(mixture.candidates, mixture.scales, strict=True)
    )
