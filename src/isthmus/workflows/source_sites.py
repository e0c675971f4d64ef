"""Which source sites a map reads side by side."""

from typing import Any

from isthmus.core.sites import Site
from isthmus.models.language_model import LanguageModel

MAX_SOURCE_WIDTH = 8192
"""Widest concatenation of source sites that `all` stands for; wider ones are thinned evenly."""


def thinned_sites(lm: LanguageModel, given: Any) -> tuple[Site, ...]:
    """Returns the sites that a map reads: those given, or all of them up to `MAX_SOURCE_WIDTH`."""
    sites = lm.sites(given)
    return thinned(sites, lm.d_model) if given == "all" else sites


def thinned(sites: tuple[Site, ...], d_model: int) -> tuple[Site, ...]:
    """Returns sites evenly apart, the first and the last among them, up to `MAX_SOURCE_WIDTH`."""
    most = max(1, MAX_SOURCE_WIDTH // d_model)
    if len(sites) <= most:
        return sites
    step = (len(sites) - 1) / max(1, most - 1)
    return tuple(dict.fromkeys(sites[round(i * step)] for i in range(most)))
