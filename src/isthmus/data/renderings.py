"""Which characters two renderings of one question share: chat templates may differ.

1. Texts that are equal share everything.
2. Else each is cut into the template before the message, the message, the template before the
   answer, and the answer; part is compared with part, by common beginning and common end.
3. In templates that differ, what corresponds counts as shared, too: the last place at which an
   ordinary token ends, and before it the last word outside `<markers>`, which names the role.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from isthmus.core.errors import DataError
from isthmus.core.texts import EncodedText

_WORD = re.compile(r"[^\W\d_]+")
_MARKER = re.compile(r"<[^<>\s]*>")
_MOST_SHOWN = 200


class Stretch(NamedTuple):
    """Characters that stand in both texts.

    Attributes:
        source: Where they begin in the source text.
        target: Where they begin in the target text.
        length: How many they are.
    """

    source: int
    target: int
    length: int


class _Part(NamedTuple):
    """A part of one rendering, by its first and one-past-last character."""

    text: EncodedText
    start: int
    end: int

    @property
    def characters(self) -> str:
        return self.text.text[self.start : self.end]

    @property
    def last_end(self) -> int:
        """The last character at which an ordinary token ends in this part, or its start."""
        ends, is_special = self.text.ends, self.text.is_special
        for i in range(bisect_right(ends, self.end) - 1, -1, -1):
            if ends[i] <= self.start:
                break
            if not is_special[i] and (i == 0 or ends[i] > ends[i - 1]):
                return ends[i]
        return self.start


def shared_stretches(source: EncodedText, target: EncodedText) -> list[Stretch]:
    """Finds what two renderings of the same question share.

    Args:
        source: The text as the source model sees it.
        target: The text as the target model sees it.

    Returns:
        Stretches in text order, apart from each other or with a gap on one side only between them.

    Raises:
        DataError: If messages, answers or, where no message is known, whole texts share less than
            half of the shorter one at their beginning and end.
    """
    if source.text == target.text:
        return _joined([Stretch(0, 0, len(source.text))])
    if source.message is None or target.message is None:
        ours, theirs = (_Part(text, 0, len(text.text)) for text in (source, target))
        return _joined(_compared(ours, theirs, "the same chat template"))
    found: list[Stretch] = []
    for n, (one, other) in enumerate(zip(_parts(source), _parts(target), strict=True)):
        is_template = n % 2 == 0
        found += _of_templates(one, other) if is_template else _compared(one, other, "one text")
    return _joined(found)


def _parts(text: EncodedText) -> tuple[_Part, _Part, _Part, _Part]:
    start, end = text.message or (0, 0)
    past_prompt = max(end, *text.ends[: text.n_prompt], 0)
    return (
        _Part(text, 0, start),
        _Part(text, start, end),
        _Part(text, end, past_prompt),
        _Part(text, past_prompt, len(text.text)),
    )


def _compared(one: _Part, other: _Part, wanted: str) -> list[Stretch]:
    """Returns common beginning and end; refuses parts that share less than half."""
    ours, theirs = one.characters, other.characters
    head, tail = _common_ends(ours, theirs)
    shorter = min(len(ours), len(theirs))
    if 2 * (head + tail) < shorter:
        raise DataError(
            f"the two models render different texts, {_shown(ours)} and {_shown(theirs)}, that "
            f"share {head + tail} of {shorter} characters at their beginning and end: give both "
            f"models {wanted}"
        )
    return _moved(_both_ends((len(ours), len(theirs)), head, tail), one, other)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…")


def _of_templates(one: _Part, other: _Part) -> list[Stretch]:
    last = one.last_end - one.start, other.last_end - other.start
    return _moved(_between_templates(one.characters, other.characters, last), one, other)


def _moved(stretches: Iterable[Stretch], one: _Part, other: _Part) -> list[Stretch]:
    """Returns stretches of two parts as those of the texts that they are from."""
    return [Stretch(one.start + i, other.start + j, length) for i, j, length in stretches]


# All texts of a model have the same few templates around them.
@lru_cache(maxsize=128)
def _between_templates(ours: str, theirs: str, last: tuple[int, int]) -> tuple[Stretch, ...]:
    head, tail = _common_ends(ours, theirs)
    first, rest = _both_ends((len(ours), len(theirs)), head, tail)
    stops = len(ours) - tail, len(theirs) - tail
    if not _lies_between((head, head), last, stops):
        last = stops[0] + 1, stops[1] + 1
    role = _role_end(ours), _role_end(theirs)
    is_role = _lies_between((head, head), role, (last[0] - 1, last[1] - 1))
    points = ([role] if is_role else []) + ([last] if last[0] <= stops[0] else [])
    # The last character stands for all that was read.
    return first, *(Stretch(place[0] - 1, place[1] - 1, 1) for place in points), rest


def _lies_between(after: tuple[int, int], place: tuple[int, int], to: tuple[int, int]) -> bool:
    return all(a < p <= b for a, p, b in zip(after, place, to, strict=True))


def _role_end(template: str) -> int:
    """Returns where the last word ends, outside of `<markers>` if there is one there."""
    plain = _MARKER.sub(lambda marker: " " * len(marker[0]), template)
    words = [*_WORD.finditer(plain)] or [*_WORD.finditer(template)]
    return words[-1].end() if words else 0


def _both_ends(lengths: tuple[int, int], head: int, tail: int) -> tuple[Stretch, Stretch]:
    return Stretch(0, 0, head), Stretch(lengths[0] - tail, lengths[1] - tail, tail)


def _common_ends(one: str, other: str) -> tuple[int, int]:
    head = _common_beginning(one, other)
    return head, _common_beginning(one[head:][::-1], other[head:][::-1])


def _common_beginning(one: str, other: str) -> int:
    """Returns how many characters two texts share at their beginning."""
    shared, past = 0, min(len(one), len(other))
    if one[:past] == other[:past]:
        return past
    while past - shared > 1:
        middle = (shared + past) // 2
        if one[shared:middle] == other[shared:middle]:
            shared = middle
        else:
            past = middle
    return shared


def _joined(stretches: list[Stretch]) -> list[Stretch]:
    """Drops empty stretches and joins those that follow each other in both texts."""
    found: list[Stretch] = []
    for one in stretches:
        last = found[-1] if found else None
        if not one.length:
            continue
        if last and (last.source + last.length, last.target + last.length) == one[:2]:
            found[-1] = Stretch(last.source, last.target, last.length + one.length)
        else:
            found.append(one)
    return found
