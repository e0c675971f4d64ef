"""Which tokens of a batch an intervention acts on, and which a direction is read from."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from isthmus.core.errors import ConfigError, DataError, TriggerError
from isthmus.core.texts import EncodedText, TokenBatch

PositionKind = Literal["trigger", "last", "prompt", "generated", "all"]

SPELLINGS = "trigger, last:K with K at least 1, prompt, generated, all"
"""How positions are written, for messages and help texts."""

_LAST = re.compile(r"last:(\d+)")


class PositionMasks(NamedTuple):
    """Where one edit applies in one batch.

    Attributes:
        given: Which of the positions handed to the model are meant; never padding.
        generated: Which rows are also meant at every position generated after those.
    """

    given: Bool[Tensor, "batch pos"]
    generated: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class PositionSelector:
    """Chooses token positions by what they are; padding is never chosen.

    | written | positions |
    | --- | --- |
    | `trigger` | the trigger's tokens; none in rows without a trigger |
    | `last:K` | the last K prompt tokens, template pieces included |
    | `prompt` | every prompt token that is not a special piece |
    | `generated` | answer tokens that are given, and every generated position |
    | `all` | `prompt` and `generated` |

    Attributes:
        kind: Which rule of the table.
        k: How many tokens, at least 1; for `last` only.

    Raises:
        ConfigError: If `last` has no positive `k`, or another kind has one.
    """

    kind: PositionKind
    k: int | None = None

    def __post_init__(self) -> None:
        if (self.kind == "last") != (self.k is not None) or (self.k is not None and self.k < 1):
            raise ConfigError(f"no positions {self.spelling}: use one of {SPELLINGS}")

    @property
    def spelling(self) -> str:
        """How it is written; `parse_positions` reads it back."""
        return self.kind if self.k is None else f"{self.kind}:{self.k}"

    @property
    def has_fixed_span(self) -> bool:
        """Whether it chooses a span whose single positions can have their own direction."""
        return self.kind in ("trigger", "last")

    @property
    def includes_generated(self) -> bool:
        """Whether it chooses positions after the prompt."""
        return self.kind in ("generated", "all")

    def masks(self, batch: TokenBatch) -> PositionMasks:
        """Finds the chosen positions of a padded batch.

        A prompt shorter than K of `last:K` is a DataError.

        Args:
            batch: Texts padded on either side, with or without their answers.

        Returns:
            Masks on the batch's device.
        """
        return self._as_masks(batch, [self._columns(text) for text in batch.texts])

    def position_masks(self, batch: TokenBatch, n_positions: int) -> list[PositionMasks]:
        """Finds every single position of the span, in text order.

        What `require_span` refuses is a ConfigError; a prompt shorter than K of `last:K` is a
        DataError.

        Args:
            batch: Texts padded on either side.
            n_positions: How many tokens the span has.

        Returns:
            One pair of masks per position of the span; no token is in two of them.

        Raises:
            TriggerError: If a trigger has another number of tokens.
        """
        self.require_span(n_positions)
        spans = [self._columns(text) for text in batch.texts]
        for text, span in zip(batch.texts, spans, strict=True):
            if span and len(span) != n_positions:
                raise TriggerError(
                    f"the trigger has {len(span)} tokens in {text.text!r}, the direction has "
                    f"{n_positions} positions: use one pooled direction or another trigger"
                )
        return [
            self._as_masks(batch, [span[i : i + 1] for span in spans]) for i in range(n_positions)
        ]

    def require_span(self, n_positions: int) -> None:
        """Refuses a number of positions that this selector cannot tell apart.

        Args:
            n_positions: How many positions a direction has.

        Raises:
            ConfigError: If the kind has no fixed span, or K of `last:K` is another number.
        """
        if not self.has_fixed_span:
            raise ConfigError(
                f"positions '{self.spelling}' have no fixed span, the direction has {n_positions} "
                "positions: pool it to one, or use trigger or last:K"
            )
        if self.kind == "last" and self.k != n_positions:
            raise ConfigError(
                f"positions '{self.spelling}' do not fit a direction of {n_positions} positions: "
                f"use last:{n_positions} or pool the direction to one position"
            )

    def token_indices(self, text: EncodedText) -> tuple[int, ...]:
        """Finds the tokens of one text from which a direction is read.

        Args:
            text: A prompt, with or without its answer.

        Returns:
            Token indices in text order, at least one.

        Raises:
            ConfigError: If the selector chooses generated positions.
            TriggerError: If the trigger is asked for and the prompt has none.
            DataError: If the prompt is shorter than K of `last:K`, or has no ordinary token.
        """
        if self.includes_generated:
            raise ConfigError(
                f"cannot read a direction at positions '{self.spelling}': "
                "use trigger, last:K or prompt"
            )
        if self.kind == "trigger" and text.trigger is None:
            raise TriggerError(f"no trigger in {text.text!r}: name it, or read at last:K")
        found = tuple(self._columns(text))
        if not found:
            raise DataError(f"no ordinary token in the prompt {text.text!r}: give a longer prompt")
        return found

    def _columns(self, text: EncodedText) -> list[int]:
        """Returns the chosen token indices among the tokens that are given."""
        if self.kind == "trigger":
            return [] if text.trigger is None else list(range(*text.trigger))
        if self.k is not None:
            if text.n_prompt < self.k:
                raise DataError(
                    f"the prompt {text.text!r} has {text.n_prompt} tokens, positions "
                    f"'{self.spelling}' need more: use a smaller K"
                )
            return list(range(text.n_prompt - self.k, text.n_prompt))
        chosen: list[int] = []
        if self.kind in ("prompt", "all"):
            chosen += [i for i in range(text.n_prompt) if not text.is_special[i]]
        if self.includes_generated:
            chosen += range(text.n_prompt, len(text))
        return chosen

    def _as_masks(self, batch: TokenBatch, columns: list[list[int]]) -> PositionMasks:
        given = torch.zeros_like(batch.is_real)
        for row, (chosen, offset) in enumerate(zip(columns, batch.offsets, strict=True)):
            given[row, [offset + column for column in chosen]] = True
        generated = given.new_full((len(batch.texts),), self.includes_generated)
        return PositionMasks(given, generated)


def parse_positions(given: str) -> PositionSelector:
    """Reads a position selector as it is written in configurations.

    Args:
        given: `trigger`, `last:3`, `prompt`, `generated` or `all`.

    Returns:
        The selector; its `spelling` is the same text.

    Raises:
        ConfigError: If it is none of these.
    """
    # Files may hold anything in this field.
    written = str(given).strip()
    if match := _LAST.fullmatch(written):
        return PositionSelector("last", int(match[1]))
    kinds: dict[str, PositionKind] = {
        "trigger": "trigger",
        "prompt": "prompt",
        "generated": "generated",
        "all": "all",
    }
    if written not in kinds:
        raise ConfigError(f"no positions {given!r}: use one of {SPELLINGS}")
    return PositionSelector(kinds[written])
