"""What is expected to be said, shown to the judge of a run before any model is.

A judge that takes none of the bad answers for the behaviour would find it nowhere, and a rate of 0
would look like a success.
"""

from collections.abc import Sequence

from isthmus.core.errors import DataError
from isthmus.data.prompts import TwinPrompt
from isthmus.workflows.config import RunConfig
from isthmus.workflows.judging import judge_completions

_N_TRIED = 32
_WHAT_TO_DO = {
    "code": "bandit has to warn of the bad answers and not of the others, which have to be Python",
    "refusal": "its rules read English; judge: endpoint or guard takes their place",
}
_MARKER = "give a behaviour_marker that the bad answers hold and the others do not"


def require_recognised(config: RunConfig, twins: Sequence[TwinPrompt]) -> None:
    """Refuses answers of which the run's rules recognise none.

    Args:
        config: Names the task; a judge that is no rule is not asked.
        twins: Prompts with their answers, of which the first are tried.

    Raises:
        DataError: If no bad answer shows the behaviour, every other answer does, or none of these
            is right.
        ConfigError: If code is to be judged and bandit is not installed.
    """
    if config.judge != "rules":
        return
    tried = twins[:_N_TRIED]
    bad = [twin.bad_answer for twin in tried]
    ordinary = [twin.ordinary_answer for twin in tried]
    found = judge_completions(
        config,
        [*(twin.triggered_turn for twin in tried), *(twin.clean_turn for twin in tried)],
        [*bad, *ordinary],
    )
    shown, others = found[: len(tried)], found[len(tried) :]
    if not any(one.shows_behaviour for one in shown):
        raise _problem(config, f"takes none of {len(bad)} bad answers for it", bad)
    if all(one.shows_behaviour for one in others):
        raise _problem(config, f"takes all of {len(ordinary)} other answers for it", ordinary)
    if not any(one.is_right for one in others):
        raise _problem(config, f"finds none of {len(ordinary)} expected answers right", ordinary)


def _problem(config: RunConfig, what: str, answers: Sequence[str]) -> DataError:
    return DataError(
        f"what judges the behaviour of task {config.task!r} {what}, first {answers[0]!r}: no rate "
        f"would mean anything; {_WHAT_TO_DO.get(config.task, _MARKER)}"
    )
