"""The only place that installs hooks: recording a probe, capturing, editing, counting tokens."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ShapeError, SiteError
from isthmus.core.sites import Site, Stream
from isthmus.models.calls import Call, TokenMeter
from isthmus.models.layouts import ModelLayout

Activations = dict[Site, Float[Tensor, "batch pos d_model"]]
"""What a forward pass computed, by site."""

_Visit = Callable[[Tensor], Tensor | None]
"""Sees an activation; returns what replaces it, or None to leave it."""


@contextmanager
def recording(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """Yields a dictionary that receives the first call of each module, in the order they end.

    Args:
        modules: What to listen to, by the name under which calls are kept.

    Yields:
        dict[str, Call]: Calls by name, filled by the first forward pass.
    """
    started: dict[str, Call] = {}
    ended: dict[str, Call] = {}

    def before(name: str, value: Tensor) -> None:
        if name not in started:
            started[name] = Call()
            started[name].given = started[name].keep(value)

    def after(name: str, value: Tensor) -> None:
        if name not in ended:
            ended[name] = started.setdefault(name, Call())
            ended[name].made = ended[name].keep(value)

    with ExitStack() as hooks:
        for name, module in modules.items():
            _at_input(hooks, module, partial(before, name))
            _at_output(hooks, module, partial(after, name))
        yield ended


@contextmanager
def capturing(
    layout: ModelLayout, sites: Sequence[Site], *, stop_after_last: bool = False
) -> Iterator[Activations]:
    """Yields a dictionary that every forward pass fills with its activations, detached.

    Inside an `editing` block it sees edited activations; opened before one, unedited ones.

    Args:
        layout: Where the sites are.
        sites: What to read; at least one.
        stop_after_last: Whether the pass ends, by an exception that `run_until_captured` swallows,
            as soon as all sites are read.

    Yields:
        Activations: What the latest forward pass computed, by site, in the model's dtype.

    Raises:
        SiteError: If no site is given or the model does not have one of them.
    """
    if not sites:
        raise SiteError("no site to capture: name at least one")
    captured: Activations = {}
    chunk = _Chunk()

    def forget(_chunk: _Chunk) -> None:
        captured.clear()

    def keep(site: Site, value: Tensor) -> None:
        value = chunk.view(value).detach()
        captured[site] = value.clone() if layout.writes_in_place else value
        if stop_after_last and captured.keys() >= set(sites):
            raise _AllCaptured

    with ExitStack() as hooks:
        _at_chunk(hooks, layout, chunk, forget)
        for site in sites:
            _at_site(hooks, layout, site, partial(keep, site))
        yield captured


def run_until_captured(
    layout: ModelLayout,
    sites: Sequence[Site],
    token_ids: Int[Tensor, "batch pos"],
    is_real: Bool[Tensor, "batch pos"],
) -> Activations:
    """Runs a forward pass up to the last of the sites and returns what is there.

    Later blocks, the final norm and the language-model head never run.

    Args:
        layout: Where the sites are.
        sites: What to read; at least one.
        token_ids: Padded token ids, on the model's device.
        is_real: False on padding.

    Returns:
        Activations by site, detached, in the model's dtype.

    Raises:
        SiteError: If no site is given or the model does not have one of them.
    """
    with capturing(layout, sites, stop_after_last=True) as captured:
        with suppress(_AllCaptured):
            layout.root(input_ids=token_ids, attention_mask=is_real.long(), use_cache=False)
        return captured


@contextmanager
def metering(layout: ModelLayout) -> Iterator[TokenMeter]:
    """Counts the positions that this thread runs a model on in the block, padding included.

    Every forward pass counts as a whole one, also where it ends early or starts above states that
    were kept.

    Args:
        layout: The model.

    Yields:
        TokenMeter: What was read and written so far.
    """
    meter, thread = TokenMeter(), threading.get_ident()

    def count(_root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            tokens, cache = _tokens_and_cache(args, kwargs)
            meter.add(tokens.shape[:2].numel(), is_step=cache is not None and tokens.shape[1] == 1)

    with ExitStack() as hooks:
        hooks.callback(layout.root.register_forward_pre_hook(count, with_kwargs=True).remove)
        yield meter


@dataclass
class EditCount:
    """How many (position, site) pairs were edited so far.

    A position that is computed again, as without a key-value cache, counts once; so does one at
    which several edits of a site act.

    Attributes:
        by_site: Edited positions per site.
    """

    by_site: dict[Site, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Edited positions, summed over sites."""
        return sum(self.by_site.values())


@contextmanager
def editing(layout: ModelLayout, edits: Sequence[PlacedEdit]) -> Iterator[EditCount]:
    """Applies edits during the `with` block: x becomes edit(x) where a mask is true.

    Every other position keeps its bits. No hook outlives the block, whatever fails in it. Which
    positions a forward pass computes is read from its key-value cache, so the same block serves
    scoring, generation and generation without a cache.

    Args:
        layout: Where the sites are.
        edits: What to do where; edits of one site act in this order.

    Yields:
        EditCount: What has been edited so far.

    Raises:
        SiteError: If the model does not have one of the sites.
        ShapeError: If an edit has another width than the model, or masks or a forward pass have
            other shapes than the batch.
    """
    _check_edits(layout, edits)
    count = EditCount()
    chunk = _Chunk()
    with ExitStack() as hooks:
        if edits:
            _at_chunk(hooks, layout, chunk, partial(_check_chunk, edits[0].given.shape))
        for site in dict.fromkeys(placed.site for placed in edits):
            here = [placed for placed in edits if placed.site == site]
            _at_site(hooks, layout, site, _SiteEdits(site, here, chunk, count))
        yield count


class _AllCaptured(Exception):  # noqa: N818 - a signal that ends a forward pass, not an error
    """All sites are read."""


@dataclass
class _Chunk:
    """Which positions the current forward pass computes."""

    batch: int = 0
    width: int = 0
    offset: int = 0
    cache: Cache | None = None

    def move_to(self, shape: tuple[int, int], cache: Cache | None) -> None:
        """Notes which positions the next pass computes."""
        if cache is None or not cache.layers:
            self.offset = 0
        elif any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
            self.offset = int(cache.get_seq_length())
        else:
            self.offset = self._read_by_recurrence(cache)
        self.cache = cache
        self.batch, self.width = shape

    def _read_by_recurrence(self, cache: Cache) -> int:
        # Purely recurrent states do not know how many tokens they have read.
        if not cache.has_previous_state():
            return 0
        is_own = self.cache is cache or self.cache is None
        if not (is_own and self.width):
            raise ShapeError(
                "the recurrent state has read tokens that were not seen here, and does not say how "
                "many: run the whole text in the same block"
            )
        return self.offset + self.width

    def view(self, value: Tensor) -> Tensor:
        # OPT flattens batch and positions before its feed-forward part.
        return value if value.ndim == 3 else value.reshape(self.batch, self.width, -1)

    def mask(self, placed: "_Masks") -> Tensor:
        known = placed.given[:, self.offset : self.offset + self.width]
        beyond = placed.generated[:, None].expand(-1, self.width - known.shape[1])
        return torch.cat([known, beyond], dim=1) if beyond.shape[1] else known


@dataclass(frozen=True)
class _Masks:
    """Both masks of an edit on one device."""

    given: Tensor
    generated: Tensor


class _SiteEdits:
    """The edits of one site as a visitor of its activations."""

    def __init__(
        self, site: Site, edits: Sequence[PlacedEdit], chunk: _Chunk, count: EditCount
    ) -> None:
        self.site = site
        self.edits = edits
        self.chunk = chunk
        self.count = count
        self.n_seen = 0
        # Whether a chunk needs any work is decided here, without waiting for the accelerator.
        self.on_host = self._masks(torch.device("cpu"))
        self.on_device: list[_Masks] | None = None

    def _masks(self, device: torch.device) -> list[_Masks]:
        return [_Masks(e.given.to(device), e.generated.to(device)) for e in self.edits]

    def __call__(self, value: Tensor) -> Tensor | None:
        masks = [self.chunk.mask(masks) for masks in self.on_host]
        self._add_to_count(masks)
        if not any(bool(mask.any()) for mask in masks):
            return None
        if self.on_device is None:
            self.on_device = self._masks(value.device)
        x = self.chunk.view(value)
        for placed, here, there in zip(self.edits, masks, self.on_device, strict=True):
            if bool(here.any()):
                edited = placed.edit(x)
                _check_edited(placed, edited, x)
                x = torch.where(self.chunk.mask(there)[..., None], edited.to(x.dtype), x)
        return x.reshape(value.shape)

    def _add_to_count(self, masks: Sequence[Tensor]) -> None:
        start, end = self.chunk.offset, self.chunk.offset + self.chunk.width
        union = torch.stack(list(masks)).any(0)[:, max(0, self.n_seen - start) :]
        self.count.by_site[self.site] = self.count.by_site.get(self.site, 0) + int(union.sum())
        self.n_seen = max(self.n_seen, end)


def _check_edits(layout: ModelLayout, edits: Sequence[PlacedEdit]) -> None:
    for placed in edits:
        layout.module_at(placed.site)
        if placed.edit.d_model != layout.d_model:
            raise ShapeError(
                f"the edit at {placed.site} has width {placed.edit.d_model}, "
                f"the model {layout.d_model}: carry it through a map first"
            )
        shape = placed.given.shape
        if shape != edits[0].given.shape or placed.generated.shape[0] != shape[0]:
            raise ShapeError(
                f"the edit at {placed.site} has masks {tuple(shape)} and "
                f"{tuple(placed.generated.shape)}, expected {tuple(edits[0].given.shape)} and one "
                "per row: place all edits on the same batch"
            )


def _check_chunk(given: torch.Size, chunk: _Chunk) -> None:
    if chunk.batch != given[0]:
        raise ShapeError(
            f"the model is run on {chunk.batch} rows, the masks are for {given[0]}: "
            "place the edits on the batch that is run"
        )
    if chunk.offset == 0 and chunk.width < given[1]:
        raise ShapeError(
            f"the first forward pass has {chunk.width} positions, the masks {given[1]}: "
            "run the whole batch at once, with a key-value cache that knows its length"
        )


def _check_edited(placed: PlacedEdit, edited: Tensor, x: Tensor) -> None:
    if edited.shape != x.shape:
        raise ShapeError(
            f"the edit at {placed.site} returned {tuple(edited.shape)} for activations of "
            f"{tuple(x.shape)}: an edit keeps the shape"
        )


def _at_site(hooks: ExitStack, layout: ModelLayout, site: Site, visit: _Visit) -> None:
    place = _at_input if site.stream is Stream.RESID_PRE else _at_output
    place(hooks, layout.module_at(site), visit)


def _at_chunk(
    hooks: ExitStack, layout: ModelLayout, chunk: _Chunk, then: Callable[[_Chunk], None]
) -> None:
    """Keeps `chunk` up to date with every forward pass of the model."""
    hook = partial(_read_chunk, chunk, then)
    hooks.callback(layout.root.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _at_input(hooks: ExitStack, module: nn.Module, visit: _Visit) -> None:
    hook = partial(_visit_input, visit)
    hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _at_output(hooks: ExitStack, module: nn.Module, visit: _Visit) -> None:
    hooks.callback(module.register_forward_hook(partial(_visit_output, visit)).remove)


def _read_chunk(
    chunk: _Chunk,
    then: Callable[[_Chunk], None],
    _root: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    tokens, cache = _tokens_and_cache(args, kwargs)
    chunk.move_to((tokens.shape[0], tokens.shape[1]), cache)
    then(chunk)


def _tokens_and_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Cache | None]:
    tokens = kwargs.get("input_ids", args[0] if args else None)
    values = [*args, *kwargs.values()]
    cache = next((value for value in values if isinstance(value, Cache)), None)
    return kwargs["inputs_embeds"] if tokens is None else tokens, cache


def _visit_input(
    visit: _Visit, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    value = args[0] if args else kwargs.get("hidden_states")
    new = visit(value) if isinstance(value, Tensor) else None
    if new is None:
        return None
    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})


def _visit_output(visit: _Visit, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    # Blocks of some models return (hidden, ...), of others hidden.
    value = output[0] if isinstance(output, tuple) and output else output
    new = visit(value) if isinstance(value, Tensor) else None
    if new is None:
        return None
    return (new, *output[1:]) if isinstance(output, tuple) else new
