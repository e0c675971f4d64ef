"""Measures every arm once on the test split."""

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.core.progress import Progress
from isthmus.evaluation.measurements import Measurement
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench, Completions
from isthmus.workflows.measuring import Recorder

_ANSWER = ("none", "clean", "native", "transferred", "random", "noise", "prompt_only")
_ANSWER_BENIGN = ("none", "native", "transferred", "random")
N_SHOWN = 12
"""How many completions are shown side by side."""


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
    bench: Bench,
    recorder: Recorder,
    arms: Sequence[Arm],
    best: Arm,
    progress: Progress,
    only: int | None = None,
) -> Tested:
    """Scores all arms; lets those that stand for their condition answer, too.

    Args:
        bench: The target on the test split.
        recorder: Writes test measurements.
        arms: Every condition, in the order in which results are written.
        best: The transferred arm that stands for its condition.
        progress: Who shows progress.
        only: Number of the one arm that is measured, as it is among all of them.

    Returns:
        All measurements, and completions side by side.
    """
    measurements: list[Measurement] = []
    shown: dict[str, Completions] = {}
    seen: set[str] = set()
    with progress.stage("test", len(arms)) as advance:
        for number, arm in enumerate(arms):
            if only not in {None, number}:
                seen.add(arm.condition)
                continue
            if arm.condition not in {"none", "clean"}:
                measurements += recorder.effects(arm, bench.score(arm))
            is_first = arm.condition not in seen
            seen.add(arm.condition)
            stands_for_condition = arm is best or (is_first and arm.condition != "transferred")
            if stands_for_condition and arm.intervention("removal") is not None:
                measurements.append(recorder.divergence(arm, bench.damage(arm), bench.benign_turns))
            if stands_for_condition and arm.condition in _ANSWER:
                done = bench.complete(arm)
                shown[arm.condition] = done
                measurements += recorder.behaviour(arm, done, bench.asked(arm))
                if arm.condition in _ANSWER_BENIGN:
                    measurements += recorder.benign(
                        arm, bench.complete_benign(arm), bench.benign_turns
                    )
            advance(1)
    return Tested(measurements, _side_by_side(bench, shown))


def _side_by_side(bench: Bench, shown: dict[str, Completions]) -> list[dict[str, str]]:
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
            **{name: shown[c].texts[i] for c, name in names.items() if c in shown},
        }
        for i, twin in enumerate(bench.twins[:N_SHOWN])
    ]
