"""What a reader of a crossing's numbers should know about their limits."""

from collections.abc import Sequence

from isthmus.evaluation.measurements import Measurement
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.selection import Scored

EFFECT_METRICS = ("recovery", "recovery_induction", "swap")
"""The metrics that need a target which shows the behaviour."""


def unjudged_notes(tested: Sequence[Measurement], why: str) -> list[str]:
    """Says on how many completions a judge came to no verdict, and why.

    Args:
        tested: Measurements of one split.
        why: The commonest reason.

    Returns:
        One sentence for people, or none where every completion was judged.
    """
    unjudged = {m.condition: m for m in tested if m.metric == "unjudged_rate" and m.value}
    if not unjudged:
        return []
    shares = ", ".join(f"{m.value:.0%} of {name}" for name, m in unjudged.items())
    note = (
        f"the judge came to no verdict on some completions ({shares}): they are in no rate "
        f"of the behaviour, and never a success; the commonest reason: {why}"
    )
    return [note]


def limits_of(best: Scored, tested: Sequence[Measurement], recorder: Recorder) -> list[str]:
    """Says where a judge came to no verdict, effects are undefined or no strength was harmless.

    Args:
        best: The best carried arm, as validation scored it.
        tested: Test measurements.
        recorder: Who made them: it knows the target, the budgets, and why rows are unjudged.

    Returns:
        Sentences for people; none where nothing has to be said.
    """
    config, notes = recorder.config, unjudged_notes(tested, recorder.why_unjudged)
    undefined = [
        m.metric
        for m in tested
        if m.condition == "transferred" and m.metric in EFFECT_METRICS and m.value is None
    ]
    if undefined:
        notes.append(
            f"{recorder.target} does not show the behaviour: the likelihoods of the "
            "answers hardly differ between the triggers, so these are undefined on test: "
            f"{', '.join(dict.fromkeys(undefined))}"
        )
    elif best.damage > config.max_benign_kl:
        notes.append(
            f"no strength stays within the damage budget of {config.max_benign_kl} nats "
            f"on validation: the least damaging does {best.damage:.3f}"
        )
    elif best.accuracy_loss > config.max_benign_loss:
        notes.append(
            f"no strength loses at most {config.max_benign_loss:g} of the right answers "
            f"to benign prompts on validation: the chosen one loses {best.accuracy_loss:.3f}"
        )
    return notes
