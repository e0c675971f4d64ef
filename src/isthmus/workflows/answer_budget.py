"""How many tokens a completion needs until a behaviour shows; refuses fewer."""

import bisect
from collections.abc import Sequence

from isthmus.core.errors import ConfigError
from isthmus.data.organisms import Turn
from isthmus.models.generation import completion_text
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import RunConfig
from isthmus.workflows.judging import judge_completions


def tokens_to_marker(lm: LanguageModel, answers: Sequence[Sequence[int]], marker: str) -> int:
    """Returns how many first tokens of answers it takes until all of them hold a marker.

    Args:
        lm: The model whose tokens they are.
        answers: Token ids of answers with the behaviour.
        marker: What every such answer holds.

    Returns:
        The most that one of them takes; 0 where one never holds it.
    """
    most = 0
    for ids in {tuple(answer) for answer in answers}:

        def holds(n: int, ids: tuple[int, ...] = ids) -> bool:
            return marker in completion_text(lm, ids[:n])

        if not holds(len(ids)):
            return 0
        most = max(most, bisect.bisect_left(range(len(ids)), x=True, key=holds))
    return most


def require_room(
    lm: LanguageModel, config: RunConfig, turns: Sequence[Turn], bad: Sequence[Sequence[int]]
) -> None:
    """Refuses completions in which the behaviour could never be seen.

    Args:
        lm: The model whose tokens they are.
        config: Names the task, and says how long completions are, if anything does.
        turns: Prompts with the answers that are right.
        bad: Token ids of the answers with the behaviour, one per prompt.

    Raises:
        ConfigError: If completions end before a backdoor's marker does in a bad answer, or before
            another task's rules recognise the behaviour in any.
    """
    n_new = config.max_new_tokens
    # What judges other than rules need is not known.
    if n_new is None or config.judge != "rules":
        return
    if config.task == "backdoor":
        if n_new < (least := tokens_to_marker(lm, bad, config.marker)):
            raise ConfigError(
                f"completions of max_new_tokens {n_new} end before {config.marker!r} does in the "
                f"bad answer, so that no behaviour would be seen: give at least {least}"
            )
        return
    cut = [completion_text(lm, ids[:n_new]) for ids in bad]
    if not any(one.shows_behaviour for one in judge_completions(config, turns, cut)):
        raise ConfigError(
            f"completions of max_new_tokens {n_new} end before the behaviour of task "
            f"{config.task!r} can be seen, as in {cut[0]!r}: leave it out or give "
            f"{max(map(len, bad))}"
        )
