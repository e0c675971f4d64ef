"""From the characters that a tokenizer says its tokens cover to where a model has read them whole.

1. A token that stops within a character (some of its bytes) ends nowhere: the next token starts
   before this one ends. The same holds for the space that SentencePiece puts before a text.
2. A tokenizer that composes characters (e and an accent to é) says that the token ends before the
   accent, though it holds it: there a character with its marks counts as one, unless the text is
   composed already.
3. A token that covers nothing ends nowhere.
"""

import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from isthmus.core.characters import carries_no_mark, continues_character

_ACCENTED = "e\u0301"


def composes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether a tokenizer rewrites combined characters before it splits a text.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        True as with Qwen, whose text is brought to Unicode's form C.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and _ACCENTED not in normalizer.normalize_str(_ACCENTED)


def read_ends(
    text: str, starts: Sequence[int], ends: Sequence[int], *, is_composed: bool
) -> list[int]:
    """Returns how many characters had been read when a token last ended between two of them.

    Args:
        text: What was tokenized.
        starts: For every token the first character that it covers.
        ends: One past the last; as `starts` where it covers none.
        is_composed: Whether the tokenizer composes characters.

    Returns:
        As many numbers, never falling; larger than the one before exactly where the token itself
        ends between two characters.
    """
    first, past = np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)
    if not len(first):
        return []
    later = np.full(len(first) + 1, len(text))
    later[:-1] = np.where(past > first, first, len(text))
    following = np.minimum.accumulate(later[::-1])[::-1][1:]
    if is_composed and not unicodedata.is_normalized("NFKC", text):
        past = _past_marks(text, past, following)
    read: list[int] = np.maximum.accumulate(np.where(past <= following, past, 0)).tolist()
    return read


def _past_marks(
    text: str, past: Int[np.ndarray, " token"], following: Int[np.ndarray, " token"]
) -> Int[np.ndarray, " token"]:
    """Moves an end before a mark behind the last mark, or nowhere if other tokens hold marks."""
    # Nothing is composed with a line break: a mark after one opens a character of its own.
    marks = (
        continues_character(mark) and not carries_no_mark(before) for before, mark in pairwise(text)
    )
    is_mark: Bool[np.ndarray, " place"] = np.array([False, *marks, False])
    places = np.where(is_mark, len(text), np.arange(len(is_mark)))
    behind = np.minimum.accumulate(places[::-1])[::-1][past]
    return np.where(is_mark[past] & (following < behind), 0, behind)
