"""Judges completions as a run's task does, or as the judge that the run names."""

from collections.abc import Sequence

from isthmus.core.errors import ConfigError
from isthmus.data.organisms import Turn
from isthmus.evaluation.judges import EndpointJudge, Judge, load_guard_judge
from isthmus.tasks import TASKS, task_named
from isthmus.tasks.base import Outcome, exact
from isthmus.tasks.refusal import refusal_outcomes
from isthmus.workflows.config import RunConfig


def make_judge(config: RunConfig) -> Judge | None:
    """Makes the judge that a run names, or None where its task judges by its own rules.

    Args:
        config: Names the judge and its settings.

    Returns:
        A language model behind an endpoint, or a loaded classifier.

    Raises:
        ConfigError: If the settings cannot work or are not there.
        ModelError: If the classifier cannot be loaded.
    """
    if config.judge == "rules":
        return None
    if config.judge == "endpoint" and config.endpoint is not None:
        return EndpointJudge(**config.endpoint.model_dump())
    if config.judge == "guard" and config.guard is not None:
        return load_guard_judge(**config.guard.model_dump())
    raise ConfigError(f"judge {config.judge!r} without its settings: give {config.judge!r}")


def judge_completions(
    config: RunConfig,
    turns: Sequence[Turn],
    completions: Sequence[str],
    judge: Judge | None = None,
) -> list[Outcome]:
    """Says of every completion whether it shows the behaviour and whether it is right.

    Args:
        config: Names the task; for a backdoor, and a style of one's own, the marker shows the
            behaviour, and an answer is right word for word.
        turns: What was asked, with the answers without the behaviour.
        completions: What a model said.
        judge: Who judges refusal in place of the rules.

    Returns:
        One outcome per completion, in order.
    """
    if judge is not None:
        verdicts = judge.judge([turn.prompt for turn in turns], completions)
        return refusal_outcomes(turns, completions, verdicts)
    is_own_style = config.task == "style" and config.questions is not None
    if config.task in TASKS and not is_own_style:
        return task_named(config.task).judge(turns, completions)
    return [
        Outcome(config.marker in completion, is_right)
        for completion, is_right in zip(completions, exact(turns, completions), strict=True)
    ]
