"""Models whose rotary positions turn at another rate once a pass reaches beyond some length.

LongRoPE (Phi-3, Phi-4-mini) has two sets of frequencies. A pass takes one of them for all its
tokens: the short set as long as no position in it lies beyond the original length. A batch whose
longest text goes beyond it would therefore read its short texts otherwise than alone.

Frequencies that grow with the text ("dynamic") do so beyond `max_position_embeddings` alone; texts
of that length are refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from isthmus.models.language_model import LanguageModel


def rotary_limits(lm: LanguageModel) -> tuple[int, ...]:
    """Returns the lengths beyond which a model reads all tokens of a pass otherwise.

    Args:
        lm: The model.

    Returns:
        Most tokens that are read the one way, in rising order; empty for nearly all models.
    """
    given = getattr(lm.model.config.get_text_config(decoder=True), "rope_parameters", None)
    return tuple(sorted(set(_lengths(given))))


def _lengths(parameters: Any) -> Iterator[int]:
    if not isinstance(parameters, Mapping):
        return
    if parameters.get("rope_type") == "longrope":
        yield int(parameters["original_max_position_embeddings"])
    # Some models have a kind of rotary positions for every kind of layer.
    for one in parameters.values():
        yield from _lengths(one)


def limit_within(lm: LanguageModel, n_tokens: int, n_new: int) -> int | None:
    """Returns the length at which a model starts to read otherwise while it continues a text.

    Args:
        lm: The model.
        n_tokens: Tokens of the text.
        n_new: Most tokens that it gets.

    Returns:
        One of `rotary_limits`; None where all passes read alike.
    """
    return _within(rotary_limits(lm), n_tokens, n_new)


def _within(limits: Sequence[int], n_tokens: int, n_new: int) -> int | None:
    # The last new token is never fed back.
    last = n_tokens + max(n_new - 1, 0)
    return next((most for most in limits if n_tokens <= most < last), None)


def read_alike(lm: LanguageModel, lengths: Sequence[int], n_new: int = 0) -> list[list[int]]:
    """Groups texts that a model may read in one batch, each as it is read alone.

    Args:
        lm: The model.
        lengths: Tokens of every text.
        n_new: Most tokens that each of them gets; texts that come to another reading meanwhile
            share a batch only with texts of their own length, which come to it at the same step.

    Returns:
        Every index once, in rising order within groups; groups of longer texts first.
    """
    limits = rotary_limits(lm)
    if not limits:
        return [list(range(len(lengths)))]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, length in enumerate(lengths):
        n_passed = sum(length > most for most in limits)
        own = 0 if _within(limits, length, n_new) is None else length
        groups.setdefault((n_passed, own), []).append(index)
    return [groups[key] for key in sorted(groups, reverse=True)]
