"""Requests of continuous decoding: one text that is continued, and what is told of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from isthmus.core.edits import PlacedEdit
from isthmus.core.texts import EncodedText

Ending = Literal["end_token", "length", "cancelled", "failed"]
"""Why a request got no more tokens."""


@dataclass(eq=False)
class DecodingRequest:
    """One text that is continued.

    Attributes:
        text: What is continued.
        max_new_tokens: Most tokens it gets.
        placed: Its edits, placed on its tokens alone.
        token_ids: What was written so far, an end token included.
        n_edited: How many (position, site) pairs were edited so far.
        ending: Why it ended; None while it waits or runs.
        error: Why it failed.
        is_cancelled: Whether it is to leave at the next step.
    """

    text: EncodedText
    max_new_tokens: int
    placed: tuple[PlacedEdit, ...]
    token_ids: list[int] = field(default_factory=list)
    n_edited: int = 0
    ending: Ending | None = None
    error: Exception | None = None
    is_cancelled: bool = False

    @property
    def is_done(self) -> bool:
        """Whether it gets no more tokens."""
        return self.ending is not None

    @property
    def has_begun(self) -> bool:
        """Whether it has got a token, or will get none."""
        return bool(self.token_ids) or self.is_done

    @property
    def most_tokens(self) -> int:
        """Tokens of its text, and most that it gets."""
        return len(self.text) + self.max_new_tokens

    @property
    def edits_later(self) -> bool:
        """Whether tokens that it writes are edited."""
        return any(bool(one.generated.any()) for one in self.placed)

    def cancel(self) -> None:
        """Makes it leave at the next step, whether it waits or runs; from any thread."""
        self.is_cancelled = True


@dataclass(frozen=True)
class NewToken:
    """One token of one request.

    Attributes:
        request: Whose.
        token_id: Which; None when the request ended without another token.
        is_last: Whether the request has ended; its `ending` says why.
    """

    request: DecodingRequest
    token_id: int | None
    is_last: bool


def of_like_length(requests: Sequence[DecodingRequest]) -> list[list[DecodingRequest]]:
    """Groups requests so that padding never is more than half of a row.

    Args:
        requests: In any order.

    Returns:
        Groups, the longest texts first.
    """
    groups: list[list[DecodingRequest]] = []
    for request in sorted(requests, key=lambda one: -len(one.text)):
        if groups and 2 * len(request.text) >= len(groups[-1][0].text):
            groups[-1].append(request)
        else:
            groups.append([request])
    return groups
