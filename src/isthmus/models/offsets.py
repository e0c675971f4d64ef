"""From the characters that a tokenizer says its tokens cover to where a model has read them whole.

1. A token that stops within a character (some of its bytes) ends nowhere: the next token starts
   before this one ends. The same holds for the space that SentencePiece puts before a text.
2. A tokenizer that composes characters (e and an accent to é) says that the token ends before the
   accent, though it holds it, and one that orders marks says for each the place of another: there a
   character with its marks counts as one, unless the text is composed already.
3. A tokenizer that trims what it says leaves out the spaces at the end of a token, though it holds
   them.
4. A token that covers nothing ends nowhere.
"""

import json
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import le
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase

from isthmus.core.characters import carries_no_mark, continues_character

_MARKED = ("e\u0301", "o\u0302\u0323")
_SPACES = "\u0120 \t\n\r"
"""What is trimmed: a space as byte-level tokenizers write it, and those in added tokens."""


def rewrites_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether a tokenizer rewrites marks before it splits a text.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        True as with Qwen, whose text is brought to Unicode's form C, and with all other forms.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and any(
        marked not in normalizer.normalize_str(marked) for marked in _MARKED
    )


def trims_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether a tokenizer leaves the spaces of a token out of what the token covers.

    Args:
        tokenizer: A fast tokenizer.

    Returns:
        True as with `trim_offsets` of a byte-level or RoBERTa post-processor.
    """
    processor: Any = tokenizer.backend_tokenizer.post_processor
    return processor is not None and _trims(json.loads(processor.__getstate__()))


def _trims(settings: dict[str, Any]) -> bool:
    own = settings.get("trim_offsets", False)
    return own or any(map(_trims, settings.get("processors", ())))


def untrimmed(spans: Sequence[tuple[int, int]], pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Returns what tokens cover, with the spaces at their ends that a tokenizer has trimmed.

    Args:
        spans: For every token its first and one-past-last character, without spaces around it.
        pieces: What each token is called in the vocabulary.

    Returns:
        As many spans. Of a token of nothing but spaces they end where they did: it is trimmed from
        its beginning.
    """
    n_spaces = [len(piece) - len(piece.rstrip(_SPACES)) for piece in pieces]
    return [
        (start, end + n if n < len(piece) else end)
        for (start, end), n, piece in zip(spans, n_spaces, pieces, strict=True)
    ]


def read_ends(text: str, spans: Sequence[tuple[int, int]], *, is_rewritten: bool) -> list[int]:
    """Returns how many characters had been read when a token last ended between two of them.

    Args:
        text: What was tokenized.
        spans: For every token the first character that it covers and one past the last; both alike
            where it covers none.
        is_rewritten: Whether the tokenizer rewrites marks.

    Returns:
        As many numbers, never falling; larger than the one before exactly where the token itself
        ends between two characters.
    """
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    has_marks = is_rewritten and _has_loose_marks(text)
    if not has_marks and all(map(le, ends, starts[1:])):
        return ends
    following = _following(text, spans)
    if has_marks:
        ends = _past_marks(text, ends, following)
    read = (past if past <= later else 0 for past, later in zip(ends, following, strict=True))
    return list(accumulate(read, max))


def _has_loose_marks(text: str) -> bool:
    if unicodedata.is_normalized("NFKC", text):
        return False
    return any(map(continues_character, set(text)))


def _following(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Returns for every token where the next characters that a later token covers begin."""
    found, start = [], len(text)
    for first, past in reversed(spans):
        found.append(start)
        if first < min(past, start):
            start = first
    return found[::-1]


def _past_marks(text: str, past: Sequence[int], following: Sequence[int]) -> list[int]:
    """Moves an end before a mark behind the last mark, or nowhere if other tokens hold marks."""
    # Nothing is composed with a line break: a mark after one opens a character of its own.
    marks = (
        continues_character(mark) and not carries_no_mark(before) for before, mark in pairwise(text)
    )
    is_mark: Bool[np.ndarray, " place"] = np.array([False, *marks, False])
    places = np.where(is_mark, len(text), np.arange(len(is_mark)))
    ends: Int[np.ndarray, " token"] = np.array(past, dtype=np.int64)
    behind = np.minimum.accumulate(places[::-1])[::-1][ends]
    moved: list[int] = np.where(is_mark[ends] & (np.array(following) < behind), 0, behind).tolist()
    return moved
