"""How many tokens a completion needs until a behaviour shows."""

import bisect
from collections.abc import Sequence

from isthmus.models.generation import completion_text
from isthmus.models.language_model import LanguageModel


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
