"""Kinds of characters, by which texts are cut."""

import unicodedata
from functools import cache
from typing import Literal

Kind = Literal["space", "letter", "digit", "sign"]


@cache
def continues_character(character: str) -> bool:
    """Says whether a character belongs to the one before it: a mark, or a later part of Hangul.

    Args:
        character: A single one.

    Returns:
        True where Unicode's normal forms may join it with what stands before it.
    """
    # Vowels and finals of Hangul, and narrow sound marks of kana, compose, but are letters.
    is_letter = "\u1160" <= character <= "\u11ff" or character in "\uff9e\uff9f"
    return is_letter or unicodedata.category(character).startswith("M")


@cache
def carries_no_mark(character: str) -> bool:
    """Says whether a character carries no mark: a line break or another control character.

    Args:
        character: A single one.

    Returns:
        True where a mark that follows stands by itself (Unicode Standard Annex 29, rule GB4).
    """
    return unicodedata.category(character) in {"Cc", "Zl", "Zp"}


@cache
def kind_of(character: str) -> Kind:
    """Returns the kind of a character; marks count as the letters that they stand on.

    Args:
        character: A single one.

    Returns:
        `space`, `letter`, `digit`, or `sign` for everything else.
    """
    if character.isspace():
        return "space"
    if character.isalpha() or continues_character(character):
        return "letter"
    return "digit" if character.isnumeric() else "sign"
