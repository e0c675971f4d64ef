"""Measures every arm once on the test split: read prompt by prompt, then made into numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isthmus.core.progress import Progress
from isthmus.evaluation.measurements import Measurement
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores, Bench, Losses
from isthmus.workflows.measuring import Recorder

_ANSWER = ("none", "clean", "native", "transferred", "random", "noise", "prompt_only")
_ANSWER_BENIGN = ("none", "native", "transferred", "random")
N_SHOWN = 12
"""How many completions are shown side by side."""


@dataclass(frozen=True)
class ArmReading:
    """What the target does under one arm, prompt by prompt; None is what was not asked.

    Attributes:
        arm: What is done to the target.
        scores: How likely both answers are.
        damage: Divergence from the untouched model on benign prompts.
        completions: What it answers to the prompts that `Bench.asked` names.
        benign: What it answers to benign prompts.
    """

    arm: Arm
    scores: ArmScores | None = None
    damage: Losses | None = None
    completions: tuple[str, ...] | None = None
    benign: tuple[str, ...] | None = None

    @classmethod
    def of(cls, bench: Bench, arm: Arm, *, stands_for_condition: bool) -> "ArmReading":
        """Scores an arm; lets it answer, too, where it stands for its condition.

        Args:
            bench: The target on the test split.
            arm: What is done to the target.
            stands_for_condition: Whether the numbers that cost more are wanted.

        Returns:
            What the target does.
        """
        answers = stands_for_condition and arm.condition in _ANSWER
        edits = arm.intervention("removal") is not None
        return cls(
            arm,
            bench.score(arm) if arm.condition not in {"none", "clean"} else None,
            bench.damage(arm) if stands_for_condition and edits else None,
            bench.complete(arm).texts if answers else None,
            bench.complete_benign(arm) if answers and arm.condition in _ANSWER_BENIGN else None,
        )


@dataclass(frozen=True)
class Tested:
    """What was measured on test questions.

    Attributes:
        measurements: Every number.
        rows: Completions side by side, one dictionary per shown question.
    """

    measurements: list[Measurement]
    rows: list[dict[str, str]]


def measure_arms(
    bench: Bench, recorder: Recorder, arms: Sequence[Arm], best: Arm, progress: Progress
) -> Tested:
    """Scores all arms; lets those that stand for their condition answer, too.

    Args:
        bench: The target on the test split.
        recorder: Writes test measurements.
        arms: Every condition, in the order in which results are written.
        best: The transferred arm that stands for its condition.
        progress: Who shows progress.

    Returns:
        All measurements, and completions side by side.
    """
    measurements: list[Measurement] = []
    shown: dict[str, tuple[str, ...]] = {}
    for reading in read_arms(bench, arms, best, progress):
        measurements += recorded(reading, bench, recorder)
        if reading.completions is not None:
            shown[reading.arm.condition] = reading.completions
    return Tested(measurements, _side_by_side(bench, shown))


def read_arms(
    bench: Bench, arms: Sequence[Arm], best: Arm, progress: Progress, only: int | None = None
) -> Iterator[ArmReading]:
    """Reads what the target does under every arm, one after the other.

    Args:
        bench: The target on the test split.
        arms: Every condition.
        best: The transferred arm that stands for its condition; of others the first does.
        progress: Who shows progress.
        only: Number of the one arm that is read, as it is among all of them.

    Yields:
        ArmReading: In the order of the arms.
    """
    first = {arm.condition: number for number, arm in reversed(list(enumerate(arms)))}
    with progress.stage("test", len(arms)) as advance:
        for number, arm in enumerate(arms):
            if only not in {None, number}:
                continue
            is_first = first[arm.condition] == number
            stands = arm is best or (is_first and arm.condition != "transferred")
            yield ArmReading.of(bench, arm, stands_for_condition=stands)
            advance(1)


def recorded(reading: ArmReading, bench: Bench, recorder: Recorder) -> list[Measurement]:
    """Makes numbers with intervals of what the target did under one arm.

    Args:
        reading: What it did.
        bench: The prompts.
        recorder: Writes test measurements.

    Returns:
        Every number.
    """
    arm, found = reading.arm, list[Measurement]()
    if reading.scores is not None:
        found += recorder.effects(arm, reading.scores)
    if reading.damage is not None:
        found.append(recorder.divergence(arm, reading.damage, bench.benign_turns))
    if reading.completions is not None:
        found += recorder.answers(arm, reading.completions, bench.asked(arm))
    if reading.benign is not None:
        found += recorder.benign(arm, reading.benign, bench.benign_turns)
    return found


def _side_by_side(bench: Bench, shown: dict[str, tuple[str, ...]]) -> list[dict[str, str]]:
    names = {
        "clean": "clean",
        "none": "triggered",
        "native": "native",
        "transferred": "transferred",
        "random": "random",
    }
    return [
        {
            "prompt": twin.triggered,
            "expected": twin.clean_answer,
            **{name: shown[c][i] for c, name in names.items() if c in shown},
        }
        for i, twin in enumerate(bench.twins[:N_SHOWN])
    ]
