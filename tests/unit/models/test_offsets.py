import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_tokenizer
from tokenizers import normalizers

from isthmus.models.offsets import composes, read_ends


def test_plain_words_end_where_the_tokenizer_says():
    assert read_ends("hi you", [0, 2], [2, 6], is_composed=False) == [2, 6]


def test_of_the_bytes_of_a_character_only_the_last_ends():
    assert read_ends("a😀b", [0, 1, 1, 1, 2], [1, 2, 2, 2, 3], is_composed=False) == [1, 1, 1, 2, 3]


def test_a_token_that_holds_a_space_and_some_bytes_has_read_neither_whole_nor_only_the_space():
    assert read_ends("a 😀", [0, 1, 2], [1, 3, 3], is_composed=False) == [1, 1, 3]


def test_a_token_that_ends_in_the_middle_of_two_characters_ends_nowhere():
    # The bytes of two characters in three tokens: the second holds the end of one and more.
    assert read_ends("日本", [0, 0, 1], [1, 2, 2], is_composed=False) == [0, 0, 2]


def test_a_space_that_sentencepiece_puts_before_a_text_ends_nowhere():
    assert read_ends(" Hello", [0, 0], [1, 6], is_composed=False) == [0, 6]


def test_tokens_that_cover_nothing_end_nowhere():
    assert read_ends("hi", [0, 0, 2, 0], [0, 2, 2, 0], is_composed=False) == [0, 2, 2, 2]


def test_no_tokens_have_no_ends():
    assert read_ends("", [], [], is_composed=True) == []


@pytest.mark.parametrize(
    ("text", "starts", "ends", "read"),
    [
        ("e\u0301x", [0, 2], [1, 3], [2, 3]),
        ("e\u0301", [0], [1], [2]),
        ("e\u0301\u0323 x", [0, 2, 3], [1, 3, 5], [0, 3, 5]),
        ("\u1112\u1161\u11ab!", [0, 3], [1, 4], [3, 4]),
        ("\u0301a", [0, 1], [1, 2], [1, 2]),
    ],
)
def test_where_characters_are_composed_a_token_ends_behind_the_marks_that_it_holds(
    text, starts, ends, read
):
    assert read_ends(text, starts, ends, is_composed=True) == read


def test_a_mark_that_composes_with_nothing_is_a_character_of_its_own():
    assert read_ends("0\u093ax", [0, 1, 2], [1, 2, 3], is_composed=True) == [1, 2, 3]


@pytest.mark.parametrize("before", ["\n", "\t", "\x00", "\u2028"])
def test_a_line_break_before_a_mark_is_a_character_of_its_own(before):
    text = f"{before}\u0301e\u0301"
    assert read_ends(text, [0, 1, 2], [1, 2, 3], is_composed=True) == [1, 2, 4]


def test_an_accent_of_its_own_is_a_character_where_nothing_is_composed():
    assert read_ends("e\u0301x", [0, 1, 2], [1, 2, 3], is_composed=False) == [1, 2, 3]


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), max_size=12), st.booleans())
def test_tokens_that_follow_each_other_without_overlap_all_end(widths, is_composed):
    ends = [sum(widths[: n + 1]) for n in range(len(widths))]
    starts = [end - width for end, width in zip(ends, widths, strict=True)]
    assert read_ends("x" * sum(widths), starts, ends, is_composed=is_composed) == ends


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (None, False),
        (normalizers.NFC(), True),
        (normalizers.NFKC(), True),
        (normalizers.NFD(), False),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), False),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.NFC()]), True),
    ],
)
def test_a_tokenizer_that_composes_characters_is_recognised(normalizer, expected):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    assert composes(tokenizer) is expected
