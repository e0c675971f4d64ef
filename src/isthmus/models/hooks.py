"""The only place that installs hooks: recording a probe, capturing, editing, counting tokens."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import SiteError
from isthmus.core.sites import Site, Stream
from isthmus.models.calls import Call, TokenMeter
from isthmus.models.chunks import Chunk
from isthmus.models.layouts import ModelLayout
from isthmus.models.live_rows import LiveRows
from isthmus.models.site_edits import EditCount, SiteEdits, check_chunk, check_edits

Activations = dict[Site, Float[Tensor, "batch pos d_model"]]
"""What a forward pass computed, by site."""

_UNMETERED: ContextVar[bool] = ContextVar("unmetered", default=False)

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
        ended[name].n_calls += 1

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
    chunk = Chunk()

    def forget(_chunk: Chunk) -> None:
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
    **inputs: Any,
) -> Activations:
    """Runs a forward pass up to the last of the sites and returns what is there.

    Later blocks, the final norm and the language-model head never run.

    Args:
        layout: Where the sites are.
        sites: What to read; at least one.
        token_ids: Padded token ids, on the model's device.
        is_real: False on padding.
        **inputs: What else the model is given, such as a cache to be filled.

    Returns:
        Activations by site, detached, in the model's dtype.

    Raises:
        SiteError: If no site is given or the model does not have one of them.
    """
    with capturing(layout, sites, stop_after_last=True) as captured:
        with suppress(_AllCaptured):
            given = {"input_ids": token_ids, "attention_mask": is_real.long(), **inputs}
            layout.root(**given, use_cache=False)
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
        if threading.get_ident() == thread and not _UNMETERED.get():
            tokens, cache = _tokens_and_cache(args, kwargs)
            meter.add(tokens.shape[:2].numel(), is_step=cache is not None and tokens.shape[1] == 1)

    with ExitStack() as hooks:
        hooks.callback(layout.root.register_forward_pre_hook(count, with_kwargs=True).remove)
        yield meter


@contextmanager
def unmetered() -> Iterator[None]:
    """Keeps what the block runs out of `metering`: passes that ask what kind a model is.

    Yields:
        None: While the block runs, nothing is counted.
    """
    token = _UNMETERED.set(True)
    try:
        yield
    finally:
        _UNMETERED.reset(token)


@contextmanager
def editing(
    layout: ModelLayout, edits: Sequence[PlacedEdit], live: LiveRows | None = None
) -> Iterator[EditCount]:
    """Applies edits during the `with` block: x becomes edit(x) where a mask is true.

    Every other position keeps its bits. No hook outlives the block, whatever fails in it. Which
    positions a forward pass computes is read from its key-value cache, so the same block serves
    scoring, generation and generation without a cache.

    Args:
        layout: Where the sites are.
        edits: What to do where; edits of one site act in this order.
        live: Which rows of the batch are still run, kept up to date by whoever runs them; all of
            them when not given.

    Yields:
        EditCount: What has been edited so far.

    Raises:
        SiteError: If the model does not have one of the sites.
        ShapeError: If an edit has another width than the model, or masks or a forward pass have
            other shapes than the batch.
    """
    check_edits(layout, edits)
    count = EditCount()
    chunk = Chunk(live=live)
    with ExitStack() as hooks:
        if edits:
            _at_chunk(hooks, layout, chunk, partial(check_chunk, edits[0].given.shape))
        for site in dict.fromkeys(placed.site for placed in edits):
            here = [placed for placed in edits if placed.site == site]
            _at_site(hooks, layout, site, SiteEdits(site, here, chunk, count))
        yield count


class _AllCaptured(Exception):  # noqa: N818 - a signal that ends a forward pass, not an error
    """All sites are read."""


def _at_site(hooks: ExitStack, layout: ModelLayout, site: Site, visit: _Visit) -> None:
    place = _at_input if site.stream is Stream.RESID_PRE else _at_output
    place(hooks, layout.module_at(site), visit)


def _at_chunk(
    hooks: ExitStack, layout: ModelLayout, chunk: Chunk, then: Callable[[Chunk], None]
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
    chunk: Chunk,
    then: Callable[[Chunk], None],
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
    # Blocks of some models return (hidden, ...), of others hidden. Fields with names say that there
    # is more than one stream (Reformer), which is not read as if there were one.
    in_sequence = isinstance(output, tuple | list) and not hasattr(output, "_fields")
    value = output[0] if in_sequence and output else output
    new = visit(value) if isinstance(value, Tensor) else None
    if new is None:
        return None
    return type(output)([new, *output[1:]]) if in_sequence else new
