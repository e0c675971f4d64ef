"""What a gate decided: for every prompt how far it was above the threshold."""

from dataclasses import dataclass


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
