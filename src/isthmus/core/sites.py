"""Sites: where in a decoder an activation is read or edited."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from typing_extensions import override

from isthmus.core.errors import SiteError


class Stream(StrEnum):
    """What is read at a layer.

    `RESID_PRE` is a block's input, `RESID_POST` its output before any final norm, `ATTN_OUT` and
    `MLP_OUT` are what the attention and the feed-forward part add to the residual stream.
    """

    RESID_PRE = "resid_pre"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    RESID_POST = "resid_post"


@dataclass(frozen=True, order=True)
class Site:
    """One layer and one stream, written `resid_post[12]`.

    Attributes:
        layer: 0-based index of the decoder block.
        stream: What is read there; its plain text is read, too.

    Raises:
        SiteError: If there is no such stream.
    """

    layer: int
    stream: Stream = Stream.RESID_POST

    def __post_init__(self) -> None:
        # A plain text equals its stream, but is not the same object: it must not pass for another.
        if self.stream not in set(Stream):
            raise SiteError(f"no stream {self.stream!r}: use one of {', '.join(Stream)}")
        object.__setattr__(self, "stream", Stream(self.stream))

    @override
    def __str__(self) -> str:
        return f"{self.stream}[{self.layer}]"


GivenSite = Site | str | int | float
"""One site as people name it: `resid_post[12]`, `12`, `0.6`."""

GivenSites = GivenSite | Sequence[GivenSite]
"""One site or several: a list, or text such as `1,2` or `all`."""

# Python refuses to convert thousands of digits to a number.
_WRITTEN = re.compile(r"\s*([a-z_]+)\s*\[\s*(-?\d{1,9})\s*\]\s*")
_PLAIN_LAYER = re.compile(r"\s*-?\d{1,9}\s*")


def parse_site(given: GivenSite, n_layers: int) -> Site:
    """Reads a site in any of its spellings.

    Args:
        given: `resid_post[12]`, a layer (`12`, or `-1` from the end; both mean `resid_post`), or
            a depth between 0 and 1 written with a point (`0.6` is layer
            `round(0.6 * (n_layers - 1))`).
        n_layers: How many blocks the model has.

    Returns:
        The full site, with a layer from 0 to `n_layers - 1`.

    Raises:
        SiteError: If it cannot be read or the model has no such layer.
    """
    if isinstance(given, Site):
        return _checked(given.layer, given.stream, given, n_layers)
    if isinstance(given, float):
        return _at_depth(given, given, n_layers)
    if isinstance(given, int):
        return _checked(given, Stream.RESID_POST, given, n_layers)
    if match := _WRITTEN.fullmatch(given):
        stream, layer = match.groups()
        if stream not in set(Stream):
            raise SiteError(f"no stream {stream!r} in {given!r}: use one of {', '.join(Stream)}")
        return _checked(int(layer), Stream(stream), given, n_layers)
    if _PLAIN_LAYER.fullmatch(given):
        return _checked(int(given), Stream.RESID_POST, given, n_layers)
    try:
        depth = float(given)
    except ValueError:
        raise SiteError(
            f"cannot read site {given!r}: write resid_post[12], a layer such as 12, or a depth "
            "such as 0.6"
        ) from None
    return _at_depth(depth, given, n_layers)


def _at_depth(depth: float, given: object, n_layers: int) -> Site:
    if not 0 <= depth <= 1:
        raise SiteError(f"no depth {given}: a depth lies between 0 and 1 (a layer has no point)")
    return Site(round(depth * (n_layers - 1)))


def _checked(layer: int, stream: Stream, given: object, n_layers: int) -> Site:
    index = layer + n_layers if layer < 0 else layer
    if not 0 <= index < n_layers:
        raise SiteError(f"no site {given}: this model has layers 0 to {n_layers - 1}")
    return Site(index, stream)


def parse_sites(given: GivenSites, n_layers: int) -> tuple[Site, ...]:
    """Reads sites: one, a list, a comma-separated text, or `all` (`resid_post` of every layer).

    Args:
        given: The sites, each in any spelling that `parse_site` reads.
        n_layers: How many blocks the model has.

    Returns:
        The full sites, in the order in which they were given.

    Raises:
        SiteError: If one cannot be read, does not exist or is named twice, or if none is given.
    """
    if isinstance(given, Site | int | float):
        given = [given]
    if isinstance(given, str):
        if given.strip() == "all":
            return tuple(Site(layer) for layer in range(n_layers))
        given = [part for part in given.split(",") if part.strip()]
    sites = tuple(parse_site(one, n_layers) for one in given)
    if not sites:
        raise SiteError("no site given: name at least one, or 'all'")
    if len(set(sites)) != len(sites):
        raise SiteError(f"a site is named twice in {', '.join(map(str, sites))}")
    return sites
