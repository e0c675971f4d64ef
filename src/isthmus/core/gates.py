"""What a gate decided: for every prompt how far it was above the threshold."""

from dataclasses import dataclass

GATED = "gated"
"""How results name the gate that was given."""

RANDOM_GATE = "random gate"
"""How results name a gate that knows nothing."""


def behind(gate: str, edit: str | None = None) -> str:
    """Returns the field `edit` of a number about a gate, or about an edit behind it.

    Args:
        gate: `GATED` or `RANDOM_GATE`.
        edit: The edit; None for the gate alone.

    Returns:
        Such as `add, gated`.
    """
    return gate if edit is None else f"{edit}, {gate}"


def gate_before(edit: str | None) -> str | None:
    """Returns which gate a number's field `edit` names; None where there is none.

    Args:
        edit: As `behind` writes it, or an edit alone.

    Returns:
        What `behind` was told.
    """
    name = (edit or "").rpartition(", ")[2]
    return name if name in {GATED, RANDOM_GATE} else None


@dataclass(frozen=True)
class GateReading:
    """A gate over the prompts of one call.

    Attributes:
        scores: How far every prompt's state lay above the threshold, in activation units and in the
            order of the prompts; None where the gate reads tokens that a prompt does not have,
            such as a trigger.
    """

    scores: tuple[float | None, ...]

    @property
    def is_open(self) -> tuple[bool, ...]:
        """Whether each prompt is edited: its score is above 0. Without a score it is not."""
        return tuple(score is not None and score > 0 for score in self.scores)

    @property
    def n_open(self) -> int:
        """How many prompts are edited."""
        return sum(self.is_open)
