"""Pairs the tokens of two tokenizers for the same text.

1. A token is known by the character at which it ends: having read it, either model has read the
   same text.
2. Special pieces and tokens that cover no character are left out.
3. Where several tokens end at one character (the bytes of an emoji), the last of them is taken:
   only then has the model read the whole character.
4. Where the two texts differ in the middle (another role marker), ends are compared within their
   common beginning and their common end.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from isthmus.core.errors import ConfigError, DataError
from isthmus.core.texts import EncodedText

PairingMethod = Literal["character_end", "index", "last"]

_NO_KEY = -1


class TokenPairs(NamedTuple):
    """Token indices that belong together, in text order.

    Attributes:
        source: Tokens of the source model's text.
        target: As many tokens of the target model's text.
    """

    source: Int[np.ndarray, " pair"]
    target: Int[np.ndarray, " pair"]


def pair_tokens(
    source: EncodedText, target: EncodedText, method: PairingMethod = "character_end"
) -> TokenPairs:
    """Finds which tokens of two models' encodings of a text belong together.

    Source: the index pairing is the baseline of arXiv:2503.04429; pairing by character end is ours.

    Args:
        source: The text as the source model's tokenizer sees it.
        target: The text as the target model's tokenizer sees it.
        method: `character_end`, tokens that end at the same character; `index`, the first with the
            first and so on, special pieces included, up to the shorter text; `last`, the last
            prompt token with the last prompt token.

    Returns:
        Indices into both texts' tokens; each token is in at most one pair.

    Raises:
        ConfigError: If there is no such method.
        DataError: If the texts share less than half of the shorter one, or a prompt is empty.
    """
    if method == "character_end":
        return _pair_by_character_end(source, target)
    if method == "index":
        both = np.arange(min(len(source), len(target)))
        return TokenPairs(both, both.copy())
    if method == "last":
        if min(source.n_prompt, target.n_prompt) < 1:
            raise DataError(f"no prompt token in {source.text!r}: give a prompt that is not empty")
        return TokenPairs(np.array([source.n_prompt - 1]), np.array([target.n_prompt - 1]))
    raise ConfigError(f"no pairing {method!r}: use character_end, index or last")


def _pair_by_character_end(source: EncodedText, target: EncodedText) -> TokenPairs:
    source_ends, target_ends = _content_ends(source), _content_ends(target)
    if source.text != target.text:
        target_ends = _in_source_text(source, target, target_ends)
    source_keys, source_last = _last_token_by_end(source_ends)
    target_keys, target_last = _last_token_by_end(target_ends)
    _, in_source, in_target = np.intersect1d(
        source_keys, target_keys, assume_unique=True, return_indices=True
    )
    return TokenPairs(source_last[in_source], target_last[in_target])


def _content_ends(text: EncodedText) -> Int[np.ndarray, " token"]:
    """Returns every token's end, or no key where it is special or covers nothing yet."""
    ends = np.array(text.ends, dtype=np.int64)
    is_content = ~np.array(text.is_special, dtype=bool) & (ends > 0)
    return np.where(is_content, ends, _NO_KEY)


def _last_token_by_end(
    ends: Int[np.ndarray, " token"],
) -> tuple[Int[np.ndarray, " end"], Int[np.ndarray, " end"]]:
    """Returns the distinct ends, ascending, and for each the last token that has it."""
    distinct, first_from_the_back = np.unique(ends[::-1], return_index=True)
    last = len(ends) - 1 - first_from_the_back
    is_key = distinct != _NO_KEY
    return distinct[is_key], last[is_key]


def _in_source_text(
    source: EncodedText, target: EncodedText, ends: Int[np.ndarray, " token"]
) -> Int[np.ndarray, " token"]:
    """Returns the target's ends as places in the source text; no key where the texts differ."""
    shorter = min(len(source.text), len(target.text))
    head = _common_beginning(source.text, target.text)
    tail = _common_beginning(source.text[head:][::-1], target.text[head:][::-1])
    if 2 * (head + tail) < shorter:
        raise DataError(
            f"the two models render different texts, {source.text!r} and {target.text!r}, that "
            f"share {head + tail} of {shorter} characters at their beginning and end: give both "
            "models the same chat template"
        )
    in_head, in_tail = ends <= head, ends > len(target.text) - tail
    shifted = ends + len(source.text) - len(target.text)
    return np.where(in_head, ends, np.where(in_tail, shifted, _NO_KEY))


def _common_beginning(one: str, other: str) -> int:
    """Returns how many characters two texts share at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
