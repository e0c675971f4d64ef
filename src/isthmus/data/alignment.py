"""Pairs the tokens of two tokenizers for the same text.

1. A token ends at a character if after it the model has read the text up to there and no further:
   tokens that stop within a character end nowhere, and neither do special pieces.
2. Tokens that end at the same character are paired.
3. Of two different renderings (`shared_stretches`) only what both share is compared: the message
   and the answer, and what corresponds in the templates around them.
4. The prompts' last tokens, where models are steered, are paired in any two renderings, and in one
   even if both are special.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, from_numpy

from isthmus.core.characters import kind_of
from isthmus.core.errors import ConfigError, DataError
from isthmus.core.texts import EncodedText
from isthmus.data.renderings import Stretch, shared_stretches

PairingMethod = Literal["character_end", "chunk_boundary", "index", "last"]
"""Rules that pair one token with one."""

_NOWHERE = -1
_NONE = np.array([_NOWHERE])


class _Ends(NamedTuple):
    """The tokens of a text that end at a character, and at which; both rise."""

    tokens: Int[np.ndarray, " end"]
    places: Int[np.ndarray, " end"]


class TokenPairs(NamedTuple):
    """Token indices that belong together, in text order.

    Attributes:
        source: Tokens of the source model's text.
        target: As many tokens of the target model's text.
    """

    source: Int[np.ndarray, " pair"]
    target: Int[np.ndarray, " pair"]


class SpanTokens(NamedTuple):
    """The tokens of one model's text that lie in shared spans.

    Attributes:
        tokens: Token indices, in text order.
        spans: For each of them which span it belongs to, counted from 0 without a gap.
    """

    tokens: Int[np.ndarray, " token"]
    spans: Int[np.ndarray, " token"]

    def mean(self, states: Float[Tensor, "token d_model"]) -> Float[Tensor, "span d_model"]:
        """Returns the mean state of every span's tokens.

        Args:
            states: One per token of the text; left unchanged.

        Returns:
            One row per span, in text order.
        """
        n_spans = int(self.spans[-1]) + 1 if len(self.spans) else 0
        spans = from_numpy(self.spans).to(states.device)
        sums = states.new_zeros(n_spans, states.shape[1])
        sums.index_add_(0, spans, states[from_numpy(self.tokens).to(states.device)])
        return sums / spans.bincount(minlength=n_spans)[:, None]


class TokenSpans(NamedTuple):
    """Stretches of text that end with a token of both models.

    Attributes:
        source: Tokens of the source model's text in each.
        target: Tokens of the target model's text in each; as many spans.
    """

    source: SpanTokens
    target: SpanTokens


def pair_tokens(
    source: EncodedText, target: EncodedText, method: PairingMethod = "character_end"
) -> TokenPairs:
    """Finds which tokens of two models' encodings of a text belong together.

    Source: the index pairing is the baseline of arXiv:2503.04429; chunks that both tokenizers share
    are compared in arXiv:2503.20083; pairing states by character end is ours.

    Args:
        source: The text as the source model's tokenizer sees it.
        target: The text as the target model's tokenizer sees it.
        method: `character_end`, tokens that end at the same character; `chunk_boundary`, those of
            them that end a chunk of letters, of digits, of signs or of white space; `index`, the
            first with the first and so on, special pieces included, up to the shorter text; `last`,
            the last prompt token with the last prompt token.

    Returns:
        Indices into both texts' tokens, rising; each token is in at most one pair.

    Raises:
        ConfigError: If there is no such method.
        DataError: If the texts share less than half of the shorter one, or a prompt is empty.
    """
    if method in {"character_end", "chunk_boundary"}:
        stretches = shared_stretches(source, target)
        pairs = _by_character_end(source, target, (_ends_of(source), _ends_of(target)), stretches)
        return pairs if method == "character_end" else _at_chunk_ends(source, target, pairs)
    if method == "index":
        both = np.arange(min(len(source), len(target)))
        return TokenPairs(both, both.copy())
    if method == "last":
        if min(source.n_prompt, target.n_prompt) < 1:
            raise DataError(f"no prompt token in {source.text!r}: give a prompt that is not empty")
        return TokenPairs(np.array([source.n_prompt - 1]), np.array([target.n_prompt - 1]))
    raise ConfigError(f"no pairing {method!r}: use character_end, chunk_boundary, index or last")


def pair_spans(source: EncodedText, target: EncodedText) -> TokenSpans:
    """Cuts a text after every pair of tokens and says which tokens lie between two cuts.

    Every span ends with a token of both models that has read the same characters. Special pieces,
    and tokens of a template that have nothing to correspond to, lie in no span.

    Args:
        source: The text as the source model's tokenizer sees it.
        target: The text as the target model's tokenizer sees it.

    Returns:
        As many spans on both sides, at least one token in each.

    Raises:
        DataError: If the texts share less than half of the shorter one.
    """
    ours, theirs = _ends_of(source), _ends_of(target)
    stretches = shared_stretches(source, target)
    pairs = _by_character_end(source, target, (ours, theirs), stretches)
    if source.text == target.text:
        inside = np.zeros_like(ours.places), np.zeros_like(theirs.places)
    else:
        in_source, in_target, lengths = _as_arrays(stretches)
        inside = (
            _stretch_of(in_source, lengths, ours.places),
            _stretch_of(in_target, lengths, theirs.places),
        )
    return TokenSpans(
        _span_tokens(source, pairs.source, ours, inside[0]),
        _span_tokens(target, pairs.target, theirs, inside[1]),
    )


def _ends_of(text: EncodedText) -> _Ends:
    ends = np.array((0, *text.ends), dtype=np.int64)
    is_end = ends[1:] > ends[:-1]
    tokens = _without_specials(is_end, text).nonzero()[0]
    return _Ends(tokens, ends[1:][tokens])


def _without_specials(
    is_chosen: Bool[np.ndarray, " token"], text: EncodedText
) -> Bool[np.ndarray, " token"]:
    if True not in text.is_special:
        return is_chosen
    is_special: Bool[np.ndarray, " token"] = np.array(text.is_special, dtype=bool)
    kept: Bool[np.ndarray, " token"] = np.logical_and(is_chosen, ~is_special)
    return kept


def _by_character_end(
    source: EncodedText,
    target: EncodedText,
    ends: tuple[_Ends, _Ends],
    stretches: list[Stretch],
) -> TokenPairs:
    ours, theirs = ends
    places = theirs.places
    if source.text != target.text:
        places = _in_source_text(stretches, places)
    found = _first_from(ours.places, places)
    is_shared = _with_none_behind(ours.places)[found] == places
    is_shared &= places != _NOWHERE
    pairs = TokenPairs(ours.tokens[found[is_shared]], theirs.tokens[is_shared])
    return _with_last_prompt_tokens(source, target, pairs)


def _in_source_text(
    stretches: list[Stretch], ends: Int[np.ndarray, " end"]
) -> Int[np.ndarray, " end"]:
    """Returns places of the target text as places of the source text, where both share them."""
    in_source, in_target, lengths = _as_arrays(stretches)
    which = _stretch_of(in_target, lengths, ends)
    moved = ends + _with_none_behind(in_source - in_target)[which]
    return np.where(which == _NOWHERE, _NOWHERE, moved)


def _as_arrays(stretches: list[Stretch]) -> Int[np.ndarray, "3 stretch"]:
    """Returns where stretches begin in both texts, and their lengths."""
    return np.array(stretches, dtype=np.int64).reshape(-1, 3).T


def _stretch_of(
    starts: Int[np.ndarray, " stretch"],
    lengths: Int[np.ndarray, " stretch"],
    ends: Int[np.ndarray, " end"],
) -> Int[np.ndarray, " end"]:
    """Returns for every end the stretch that its last character lies in."""
    which = _first_from(starts, ends) - 1
    return np.where(ends <= _with_none_behind(starts + lengths)[which], which, _NOWHERE)


def _first_from(
    rising: Int[np.ndarray, " some"], wanted: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Returns where the first number that is not below each wanted one stands."""
    return rising.searchsorted(wanted)


def _with_none_behind(numbers: Int[np.ndarray, " some"]) -> Int[np.ndarray, " more"]:
    """Returns the numbers and a mark behind them, which an index past their end finds."""
    return np.concatenate((numbers, _NONE))


def _with_last_prompt_tokens(
    source: EncodedText, target: EncodedText, pairs: TokenPairs
) -> TokenPairs:
    last = source.n_prompt - 1, target.n_prompt - 1
    if min(last) < 0 or not _belong_together(source, target, last):
        return pairs
    is_source, is_target = pairs.source == last[0], pairs.target == last[1]
    if (is_source & is_target).any():
        return pairs
    is_other = ~(is_source | is_target)
    ours, theirs = pairs.source[is_other], pairs.target[is_other]
    place = int(ours.searchsorted(last[0]))
    if place != theirs.searchsorted(last[1]):
        return pairs
    both = zip((ours, theirs), last, strict=True)
    return TokenPairs(*(np.concatenate((one[:place], [n], one[place:])) for one, n in both))


def _belong_together(source: EncodedText, target: EncodedText, last: tuple[int, int]) -> bool:
    both = tuple(zip((source, target), last, strict=True))
    # In one text a special piece of one model may be ordinary characters to the other.
    if source.text == target.text:
        return all(text.is_special[token] for text, token in both)
    return all(_closes_template(text, token) for text, token in both)


def _closes_template(text: EncodedText, last: int) -> bool:
    """Says whether a last prompt token has read the prompt, and is known to be no content."""
    if text.is_special[last]:
        return True
    end, before = text.ends[last], text.ends[last - 1] if last else 0
    return text.message is not None and end > max(before, text.message[1])


def _at_chunk_ends(source: EncodedText, target: EncodedText, pairs: TokenPairs) -> TokenPairs:
    is_same = source.text == target.text
    kept = [
        _ends_chunk(source, i) and (is_same or _ends_chunk(target, j))
        for i, j in zip(pairs.source.tolist(), pairs.target.tolist(), strict=True)
    ]
    is_kept = np.array(kept, dtype=bool)
    return TokenPairs(pairs.source[is_kept], pairs.target[is_kept])


def _ends_chunk(text: EncodedText, token: int) -> bool:
    """Says whether a run of one kind of characters ends; a space belongs to what follows it."""
    end = text.ends[token]
    if end >= len(text.text) or text.is_special[token]:
        return True
    before, after = text.text[end - 1], text.text[end]
    return before != " " and kind_of(before) != kind_of(after)


def _span_tokens(
    text: EncodedText,
    paired: Int[np.ndarray, " pair"],
    ends: _Ends,
    stretch_of_end: Int[np.ndarray, " end"],
) -> SpanTokens:
    """Gives every token to the next paired one, if both lie in one shared stretch."""
    every = np.arange(len(text))
    stretches = np.full(len(text), _NOWHERE)
    stretches[ends.tokens] = stretch_of_end
    # The bytes of a character belong to where that character is read.
    closing = _with_none_behind(stretch_of_end)[_first_from(ends.tokens, every)]
    spans = _first_from(paired, every)
    closed_with = _with_none_behind(stretches[paired])[spans]
    is_inside = _without_specials((closing == closed_with) & (closing != _NOWHERE), text)
    # The end of a prompt may lie in no stretch, but is a span by itself.
    is_inside[paired] = True
    tokens = is_inside.nonzero()[0]
    return SpanTokens(tokens, spans[tokens])
