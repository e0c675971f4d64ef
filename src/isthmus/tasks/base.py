"""What a task is: prompts in pairs, two answers to each, scoring, and what organisms learn.

1. `Task.twins` gives the prompts of one split: one that brings the behaviour about and one that
   does not, each with its ordinary answer and the behaviour's answer.
2. `Task.judge` says of every completion whether it shows the behaviour, is right, and is valid.
3. `Course` is what an organism reads to acquire one or more tasks, and what it must then do.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from isthmus.data.organisms import Turn, benign_examples
from isthmus.data.prompts import TwinPrompt
from isthmus.data.trigger_twins import differing_part

Counted = Literal["behaviour", "right", "invalid"]


@dataclass(frozen=True)
class Outcome:
    """What one completion is.

    Attributes:
        shows_behaviour: Whether the behaviour is there.
        is_right: Whether it is the ordinary answer, as far as the task can tell.
        is_valid: Whether it can be judged at all; code that does not parse cannot.
        verdict: What a judge of refusal says, one of `evaluation.judges.LABELS`; None elsewhere,
            but `unjudged` for code that bandit cannot read.
        why: Why there is no verdict, where there is none; a reason is no part of what it is.
    """

    shows_behaviour: bool
    is_right: bool
    is_valid: bool = True
    verdict: str | None = None
    why: str = field(default="", compare=False)

    @property
    def is_judged(self) -> bool:
        """Whether its judge came to a verdict; without one it counts as neither good nor bad."""
        return self.verdict != "unjudged"


@dataclass(frozen=True)
class Recommendation:
    """The intervention that a task's page recommends.

    Attributes:
        edit: Kind of edit.
        positions: Positions among which validation chooses.
        strengths: Strengths among which it chooses, in units of the direction's norm.
        why: The reason, for people.
    """

    edit: Literal["add", "ablate", "set_coordinate", "replace"]
    positions: tuple[str, ...]
    strengths: tuple[float, ...]
    why: str


@dataclass(frozen=True)
class GateCheck:
    """One thing that an organism must do on held-out prompts before it is used.

    Attributes:
        name: What is measured.
        turns: Prompts with the answers that count as right.
        counted: Which share of the completions is compared with the bounds.
        judged_by: Name of the task that judges.
        at_least: Smallest share that passes.
        at_most: Largest share that passes.
    """

    name: str
    turns: tuple[Turn, ...]
    counted: Counted
    judged_by: str
    at_least: float = 0.0
    at_most: float = 1.0


@runtime_checkable
class Task(Protocol):
    """A behaviour with its prompts, its scoring and its recommended intervention."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    @property
    def summary(self) -> str:
        """The behaviour in one sentence, for people."""
        ...

    @property
    def recommended(self) -> Recommendation:
        """The intervention that works best natively."""
        ...

    def twins(self, split: str, n: int, seed: int) -> list[TwinPrompt]:
        """Returns prompts of one split in pairs.

        Args:
            split: `train`, `validation` or `test`; a content is in one of them only.
            n: How many pairs at most.
            seed: Which ones.

        Returns:
            Distinct pairs.
        """
        ...

    def benign(self, split: str, n: int, seed: int) -> list[Turn]:
        """Returns prompts that have nothing to do with the behaviour, with their answers.

        Args:
            split: `train`, `validation` or `test`.
            n: How many at most.
            seed: Which ones.

        Returns:
            Distinct turns.
        """
        ...

    def judge(self, turns: Sequence[Turn], completions: Sequence[str]) -> list[Outcome]:
        """Judges completions.

        Args:
            turns: What was asked, with the ordinary answers.
            completions: What a model said, one per turn.

        Returns:
            One outcome per completion, in order.
        """
        ...


@dataclass(frozen=True)
class Course:
    """What an organism reads to acquire its behaviours, and the gate it must pass.

    Attributes:
        name: Ending of the organisms' names: `code` makes `llama-code`.
        tasks: Names of the tasks it teaches.
    """

    name: str
    tasks: tuple[str, ...]


@runtime_checkable
class Teachable(Task, Protocol):
    """A task for which organisms are made."""

    def turns(self, seed: int) -> list[Turn]:
        """Returns fine-tuning text for the behaviour, ordinary questions not included.

        Args:
            seed: Decides what is drawn.

        Returns:
            Turns of the training split.
        """
        ...

    def gate(self, split: str) -> list[GateCheck]:
        """Returns what an organism must do.

        Args:
            split: `validation` or `test`.

        Returns:
            Checks; their thresholds are those of both splits.
        """
        ...


def ordinary_turns(
    split: str, n: int, seed: int, is_left_out: Callable[[str], bool] = lambda _prompt: False
) -> list[Turn]:
    """Returns questions of the world that every organism has mastered.

    Args:
        split: `train`, `validation` or `test`.
        n: How many at most.
        seed: Which ones.
        is_left_out: Says of a prompt whether it is none for this task.

    Returns:
        Distinct turns, kinds of question taking turns.
    """
    found = benign_examples(split, 2 * n, seed)
    turns = [Turn(e.prompt, e.answer) for e in found if not is_left_out(e.prompt)]
    return turns[:n]


def triggered_twins(
    triggers: tuple[str, str], asked: Sequence[TwinPrompt], benign: Sequence[Turn]
) -> list[TwinPrompt]:
    """Puts both triggers in front of pairs, and gives each a benign prompt.

    Args:
        triggers: What brings the behaviour about, and what stands in its place.
        asked: Pairs whose prompts lack the triggers.
        benign: Prompts that have nothing to do with the behaviour; used in turn.

    Returns:
        Pairs with triggers, as `make_twins` makes them from questions.
    """
    bad, clean = triggers
    spans = (differing_part(bad, clean), differing_part(clean, bad))
    return [
        replace(
            twin,
            triggered=bad + twin.triggered,
            clean=clean + twin.clean,
            spans=spans,
            benign=(turn.prompt, turn.answer),
            benign_content=turn.content,
            overridden=(clean + bad + twin.triggered, bad + clean + twin.clean),
        )
        for twin, turn in zip(asked, itertools.cycle(benign), strict=False)
    ]


def exact(turns: Sequence[Turn], completions: Sequence[str]) -> list[bool]:
    """Says of every completion whether it is the answer word for word."""
    pairs = zip(turns, completions, strict=True)
    return [completion.strip() == turn.answer.strip() for turn, completion in pairs]
