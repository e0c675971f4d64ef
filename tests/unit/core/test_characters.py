import unicodedata

import pytest

from isthmus.core.characters import carries_no_mark, continues_character, kind_of


@pytest.mark.parametrize("character", ["\u0301", "\u0323", "\u1161", "\u11ab", "\u093e", "\ufe0f"])
def test_marks_and_later_parts_of_hangul_continue_a_character(character):
    assert continues_character(character)


@pytest.mark.parametrize("character", ["a", "é", " ", "日", "😀", "\u1112", "\u200d", "ש"])
def test_what_stands_alone_continues_nothing(character):
    assert not continues_character(character)


def test_every_character_that_unicode_composes_with_another_continues_it():
    for code in range(0x110000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and unicodedata.normalize("NFC", chr(code)) == chr(code):
            assert continues_character(chr(int(parts[1], 16))) or parts[0].startswith("<")


@pytest.mark.parametrize(
    ("characters", "kind"),
    [
        ("aß日ש\u0301", "letter"),
        (" \n\t\u3000", "space"),
        ("1٣²", "digit"),
        (".—😀|", "sign"),
    ],
)
def test_a_character_has_one_kind(characters, kind):
    assert {kind_of(one) for one in characters} == {kind}


def test_no_mark_is_ever_composed_with_a_character_that_carries_none():
    assert all(map(carries_no_mark, "\n\r\t\u2028\u2029"))
    composed = [chr(code) for code in range(0x110000) if unicodedata.decomposition(chr(code))]
    assert not any(map(carries_no_mark, (" ", "a", "日", *composed)))
