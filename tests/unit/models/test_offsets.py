import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_tokenizer
from tokenizers import normalizers, processors

from isthmus.models.offsets import read_ends, rewrites_marks, trims_spaces, untrimmed


def read(text, starts, ends, *, is_rewritten=False):
    return read_ends(text, list(zip(starts, ends, strict=True)), is_rewritten=is_rewritten)


def test_plain_words_end_where_the_tokenizer_says():
    assert read("hi you", [0, 2], [2, 6]) == [2, 6]


def test_of_the_bytes_of_a_character_only_the_last_ends():
    assert read("a😀b", [0, 1, 1, 1, 2], [1, 2, 2, 2, 3]) == [1, 1, 1, 2, 3]


def test_a_token_that_holds_a_space_and_some_bytes_has_read_neither_whole_nor_only_the_space():
    assert read("a 😀", [0, 1, 2], [1, 3, 3]) == [1, 1, 3]


def test_a_token_that_ends_in_the_middle_of_two_characters_ends_nowhere():
    # The bytes of two characters in three tokens: the second holds the end of one and more.
    assert read("日本", [0, 0, 1], [1, 2, 2]) == [0, 0, 2]


def test_a_space_that_sentencepiece_puts_before_a_text_ends_nowhere():
    assert read(" Hello", [0, 0], [1, 6]) == [0, 6]


def test_tokens_that_cover_nothing_end_nowhere():
    assert read("hi", [0, 0, 2, 0], [0, 2, 2, 0]) == [0, 2, 2, 2]


def test_no_tokens_have_no_ends():
    assert read("", [], [], is_rewritten=True) == []


@pytest.mark.parametrize(
    ("text", "starts", "ends", "expected"),
    [
        ("e\u0301x", [0, 2], [1, 3], [2, 3]),
        ("e\u0301", [0], [1], [2]),
        ("e\u0301\u0323 x", [0, 2, 3], [1, 3, 5], [0, 3, 5]),
        ("\u1112\u1161\u11ab!", [0, 3], [1, 4], [3, 4]),
        ("\u0301a", [0, 1], [1, 2], [1, 2]),
    ],
)
def test_where_characters_are_composed_a_token_ends_behind_the_marks_that_it_holds(
    text, starts, ends, expected
):
    assert read(text, starts, ends, is_rewritten=True) == expected


def test_a_mark_that_composes_with_nothing_is_a_character_of_its_own():
    assert read("0\u093ax", [0, 1, 2], [1, 2, 3], is_rewritten=True) == [1, 2, 3]


@pytest.mark.parametrize("before", ["\n", "\t", "\x00", "\u2028"])
def test_a_line_break_before_a_mark_is_a_character_of_its_own(before):
    text = f"{before}\u0301e\u0301"
    assert read(text, [0, 1, 2], [1, 2, 3], is_rewritten=True) == [1, 2, 4]


def test_an_accent_of_its_own_is_a_character_where_nothing_is_composed():
    assert read("e\u0301x", [0, 1, 2], [1, 2, 3]) == [1, 2, 3]


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), max_size=12), st.booleans())
def test_tokens_that_follow_each_other_without_overlap_all_end(widths, is_rewritten):
    ends = [sum(widths[: n + 1]) for n in range(len(widths))]
    starts = [end - width for end, width in zip(ends, widths, strict=True)]
    assert read("x" * sum(widths), starts, ends, is_rewritten=is_rewritten) == ends


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (None, False),
        (normalizers.NFC(), True),
        (normalizers.NFKC(), True),
        (normalizers.NFD(), True),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), False),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.NFC()]), True),
    ],
)
def test_a_tokenizer_that_composes_or_orders_marks_is_recognised(normalizer, expected):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    assert rewrites_marks(tokenizer) is expected


def test_the_spaces_that_a_tokenizer_trims_from_the_end_of_a_token_are_read_with_it():
    # "x", a line break and three spaces, " y", three spaces.
    spans, pieces = [(0, 1), (1, 2), (6, 7), (10, 10)], ["x", "ĊĠĠĠ", "Ġy", "ĠĠĠ"]
    assert untrimmed(spans, pieces) == [(0, 1), (1, 5), (6, 7), (10, 10)]
    assert read_ends("x\n    y   ", untrimmed(spans, pieces), is_rewritten=False) == [1, 5, 7, 10]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (None, False),
        (processors.ByteLevel(trim_offsets=False), False),
        (processors.ByteLevel(trim_offsets=True), True),
        (processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True), True),
        (processors.Sequence([processors.ByteLevel(trim_offsets=True)]), True),
        (processors.TemplateProcessing("$A", special_tokens=[]), False),
    ],
)
def test_a_tokenizer_that_trims_what_a_token_covers_is_recognised(processor, expected):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processor
    assert trims_spaces(tokenizer) is expected
