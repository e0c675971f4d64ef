import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ConfigError, DataError
from isthmus.core.texts import EncodedText
from isthmus.data.alignment import SpanTokens, pair_spans, pair_tokens


def encoded(text, pieces, *, special=(), n_prompt=None):
    """A text as the given pieces."""
    ends = []
    at = 0
    for piece in pieces:
        at += len(piece)
        ends.append(at)
    return EncodedText(
        text,
        tuple(range(len(ends))),
        tuple(ends),
        tuple(i in special for i in range(len(ends))),
        len(ends) if n_prompt is None else n_prompt,
    )


def cut(text, places, special=()):
    """The same text cut after the given characters; a place given twice is a token without any."""
    ends = (*sorted(place for place in places if place <= len(text)), len(text))
    return EncodedText(
        text, tuple(range(len(ends))), ends, tuple(e in special for e in ends), len(ends)
    )


def listed(pairs):
    return list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))


def test_tokens_that_end_at_the_same_character_are_paired():
    source = encoded("the cat sat", ["the", " cat", " sat"])
    target = encoded("the cat sat", ["th", "e", " c", "at", " sat"])
    assert listed(pair_tokens(source, target)) == [(0, 1), (1, 3), (2, 4)]


def test_special_pieces_are_never_paired_even_where_they_end_together():
    source = encoded("<s>hi</s>", ["<s>", "hi", "</s>"], special=(0, 2))
    target = encoded("<s>hi</s>", ["<", "s>", "h", "i", "</s>"])
    assert listed(pair_tokens(source, target)) == [(1, 3)]
    assert listed(pair_tokens(target, source)) == [(3, 1)]


def test_of_several_tokens_for_one_character_only_the_one_that_completes_it_is_paired():
    source = EncodedText("a😀b", (1, 2, 3, 4, 5), (1, 1, 1, 2, 3), (False,) * 5, 5)
    target = encoded("a😀b", ["a", "😀", "b"])
    assert listed(pair_tokens(source, target)) == [(0, 0), (3, 1), (4, 2)]


def test_a_token_that_ends_nowhere_new_is_not_paired():
    source = EncodedText("hi", (9, 1), (0, 2), (False, False), 2)
    target = EncodedText("hi", (8, 1, 2), (0, 1, 2), (False, False, False), 3)
    assert listed(pair_tokens(source, target)) == [(1, 2)]


def test_the_answer_is_paired_as_the_prompt_is():
    source = encoded("hi there", ["hi", " there"], n_prompt=1)
    target = encoded("hi there", ["h", "i", " there"], n_prompt=2)
    assert listed(pair_tokens(source, target)) == [(0, 1), (1, 2)]


TEXTS = st.text("ab 😀ü", min_size=1, max_size=20)
PLACES = st.lists(st.integers(1, 20), max_size=12)
SPECIAL = st.sets(st.integers(1, 20), max_size=3)


@settings(deadline=None)
@given(TEXTS, PLACES, PLACES, SPECIAL)
def test_pairs_end_together_in_order_without_specials_and_none_is_missing(text, a, b, special):
    source, target = cut(text, a, special), cut(text, b)
    pairs = pair_tokens(source, target)
    source_ends = [source.ends[i] for i in pairs.source]
    assert source_ends == [target.ends[i] for i in pairs.target]
    assert not any(source.is_special[i] for i in pairs.source)
    assert (np.diff(pairs.source) > 0).all()
    assert (np.diff(pairs.target) > 0).all()
    assert set(source_ends) == (set(source.ends) & set(target.ends)) - special


@settings(deadline=None)
@given(TEXTS, PLACES, PLACES, SPECIAL)
def test_pairing_is_symmetric(text, a, b, special):
    source, target = cut(text, a, special), cut(text, b)
    there, back = pair_tokens(source, target), pair_tokens(target, source)
    assert listed(there) == [(i, j) for j, i in listed(back)]


@settings(deadline=None)
@given(TEXTS, PLACES)
def test_a_text_pairs_with_itself_at_every_character_that_ends_a_token(text, places):
    one = cut(text, places)
    pairs = pair_tokens(one, one)
    assert listed(pairs) == [(i, i) for i in pairs.source.tolist()]
    assert len(pairs.source) == len(set(one.ends))


@settings(deadline=None)
@given(TEXTS, PLACES, PLACES)
def test_a_prefix_that_one_text_has_more_shifts_the_pairs_and_loses_none(text, a, b):
    source, target = cut(text, a), cut(text, b)
    bos = EncodedText(
        "<s>" + text,
        (99, *target.token_ids),
        (3, *(end + 3 for end in target.ends)),
        (True, *target.is_special),
        1 + target.n_prompt,
    )
    expected = [(i, j + 1) for i, j in listed(pair_tokens(source, target))]
    assert listed(pair_tokens(source, bos)) == expected
    assert listed(pair_tokens(bos, source)) == [(j, i) for i, j in expected]


def test_tokens_that_end_in_the_part_that_differs_are_left_out():
    source = encoded("User: hello AI:", ["User", ":", " hello", " AI", ":"])
    target = encoded("User: hello Assistant:", ["User:", " hel", "lo", " Assistant", ":"])
    assert listed(pair_tokens(source, target)) == [(1, 0), (2, 2), (4, 4)]


def test_a_common_beginning_is_not_counted_again_as_a_common_end():
    source, target = encoded("aa", ["a", "a"]), encoded("aaa", ["a", "a", "a"])
    assert listed(pair_tokens(source, target)) == [(0, 0), (1, 1)]


def test_texts_that_share_less_than_half_are_refused():
    source, target = encoded("abcdef", ["abcdef"]), encoded("uvwxef", ["uvwxef"])
    with pytest.raises(DataError, match=r"share 2 of 6 characters .* same chat template"):
        pair_tokens(source, target)
    assert listed(pair_tokens(source, encoded("abcxyz", ["abcx", "yz"]))) == []


def test_pairing_by_index_goes_up_to_the_shorter_text_and_skips_nothing():
    source = encoded("<s>hi you", ["<s>", "hi", " you"], special=(0,))
    target = encoded("hi you", ["h", "i", " y", "o", "u"])
    assert listed(pair_tokens(source, target, "index")) == [(0, 0), (1, 1), (2, 2)]
    assert listed(pair_tokens(target, source, "index")) == [(0, 0), (1, 1), (2, 2)]


def test_pairing_the_last_takes_the_last_prompt_token_of_each():
    source = encoded("hi there", ["hi", " there"], n_prompt=1)
    target = encoded("hi there", ["h", "i", " there"], n_prompt=2)
    assert listed(pair_tokens(source, target, "last")) == [(0, 1)]


def test_pairing_the_last_of_an_empty_prompt_is_refused():
    source = encoded("hi", ["hi"])
    with pytest.raises(DataError, match="no prompt token"):
        pair_tokens(source, encoded("hi", ["hi"], n_prompt=0), "last")


def test_an_unknown_pairing_is_refused():
    # The run-time type checks refuse it too; without them this is what a user sees.
    unchecked = getattr(pair_tokens, "__wrapped__", pair_tokens)
    one = encoded("hi", ["hi"])
    with pytest.raises(ConfigError, match="character_end, chunk_boundary, index or last"):
        unchecked(one, one, "middle")


def test_the_last_prompt_tokens_are_paired_when_both_are_special():
    source = encoded("<u>hi<a>yes", ["<u>", "hi", "<a>", "yes"], special=(0, 2), n_prompt=3)
    target = encoded("<u>hi<a>yes", ["<u>", "h", "i", "<a>", "yes"], special=(0, 3), n_prompt=4)
    assert listed(pair_tokens(source, target)) == [(1, 2), (2, 3), (3, 4)]
    plain = encoded("<u>hi<a>yes", ["<u>", "hi", "<", "a>", "yes"], special=(0,), n_prompt=4)
    assert listed(pair_tokens(source, plain)) == [(1, 1), (3, 4)]


def test_chunks_end_where_the_kind_of_character_changes_but_not_behind_a_space():
    text = "Hello, big world's 42nd\n\nend"
    one = cut(text, list(range(1, len(text) + 1)))
    pairs = pair_tokens(one, one, "chunk_boundary")
    assert [text[: one.ends[i]][-3:] for i in pairs.source] == [
        "llo", "lo,", "big", "rld", "ld'", "d's", " 42", "2nd", "d\n\n", "end",
    ]  # fmt: skip


def test_a_chunk_that_only_one_tokenizer_cuts_off_is_not_paired():
    source = encoded("the cat sat", ["the", " cat", " sat"])
    target = encoded("the cat sat", ["the", " ca", "t s", "at"])
    assert listed(pair_tokens(source, target, "chunk_boundary")) == [(0, 0), (2, 3)]


@settings(deadline=None)
@given(TEXTS, PLACES, PLACES)
def test_chunk_ends_are_some_of_the_character_ends(text, a, b):
    source, target = cut(text, a), cut(text, b)
    every = listed(pair_tokens(source, target))
    chunks = listed(pair_tokens(source, target, "chunk_boundary"))
    assert set(chunks) <= set(every)
    assert chunks[-1] == every[-1]
    assert chunks == [(j, i) for i, j in listed(pair_tokens(target, source, "chunk_boundary"))]


def members(side):
    return [side.tokens[side.spans == n].tolist() for n in range(side.spans.max() + 1)]


def test_a_span_holds_the_tokens_between_two_shared_ends():
    source = encoded("the cat sat", ["the", " cat", " sat"])
    target = encoded("the cat sat", ["th", "e", " c", "at s", "at"])
    spans = pair_spans(source, target)
    assert members(spans.source) == [[0], [1, 2]]
    assert members(spans.target) == [[0, 1], [2, 3, 4]]


def test_special_pieces_and_what_follows_the_last_shared_end_are_in_no_span():
    source = encoded("<s>hi</s>you", ["<s>", "hi", "</s>", "you"], special=(0, 2))
    target = encoded("<s>hi</s>you", ["<s>", "h", "i", "</s>", "y", "ou"], special=(0, 3))
    spans = pair_spans(source, target)
    assert members(spans.source) == [[1], [3]]
    assert members(spans.target) == [[1, 2], [4, 5]]
    cut_short = EncodedText("<s>hi</s>you", (1, 2, 3, 4), (3, 5, 9, 10), (True, False) * 2, 4)
    assert members(pair_spans(source, cut_short).source) == [[1]]


def test_the_bytes_of_a_character_are_in_the_span_that_it_ends():
    source = EncodedText("a😀b", (1, 2, 3, 4, 5), (1, 1, 1, 2, 3), (False,) * 5, 5)
    spans = pair_spans(source, encoded("a😀b", ["a", "😀", "b"]))
    assert members(spans.source) == [[0], [1, 2, 3], [4]]


def test_texts_without_a_shared_end_have_no_span():
    spans = pair_spans(encoded("abcxyz", ["abcx", "yz"]), encoded("abcdef", ["abcd", "ef"]))
    assert [len(one) for side in spans for one in side] == [0, 0, 0, 0]
    assert spans.source.mean(torch.ones(2, 3)).shape == (0, 3)


@settings(deadline=None)
@given(TEXTS, PLACES, PLACES, SPECIAL)
def test_spans_end_with_the_pairs_and_follow_each_other(text, a, b, special):
    source, target = cut(text, a, special), cut(text, b)
    pairs, spans = pair_tokens(source, target), pair_spans(source, target)
    for side, last, of in zip(spans, pairs, (source, target), strict=True):
        assert (np.diff(side.tokens) > 0).all()
        assert (np.diff(side.spans) >= 0).all()
        assert sorted(set(side.spans.tolist())) == list(range(len(last)))
        is_last = np.append(np.diff(side.spans) > 0, True)[: len(side.spans)]
        assert side.tokens[is_last].tolist() == last.tolist()
        assert not any(of.is_special[i] for i in side.tokens)


def test_the_mean_of_a_span_is_that_of_its_rows_and_leaves_them_unchanged():
    states = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    before = states.clone()
    side = SpanTokens(np.array([0, 2, 3, 4]), np.array([0, 1, 1, 1]))
    expected = torch.stack([states[0], states[2:5].mean(0)])
    torch.testing.assert_close(side.mean(states), expected)
    assert torch.equal(states, before)
