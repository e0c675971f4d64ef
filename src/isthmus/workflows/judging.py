"""Judges completions as a run's task does."""

from collections.abc import Sequence

from isthmus.data.organisms import Turn
from isthmus.tasks import TASKS, task_named
from isthmus.tasks.base import Outcome, exact
from isthmus.workflows.config import RunConfig


def judge_completions(
    config: RunConfig, turns: Sequence[Turn], completions: Sequence[str]
) -> list[Outcome]:
    """Says of every completion whether it shows the behaviour and whether it is right.

    Args:
        config: Names the task; for a backdoor its marker shows the behaviour, and an answer is
            right word for word.
        turns: What was asked, with the answers without the behaviour.
        completions: What a model said.

    Returns:
        One outcome per completion, in order.
    """
    if config.task in TASKS:
        return task_named(config.task).judge(turns, completions)
    return [
        Outcome(config.marker in completion, is_right)
        for completion, is_right in zip(completions, exact(turns, completions), strict=True)
    ]
