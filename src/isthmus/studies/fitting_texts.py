"""Texts on which maps are fitted: of a task, general ones, random words, a few prompts."""

import random
from collections.abc import Sequence

from isthmus.data.organisms import Turn
from isthmus.data.prompts import TwinPrompt
from isthmus.models.language_model import LanguageModel
from isthmus.tasks import TASKS, task_named
from isthmus.tasks.base import ordinary_turns

Texts = Sequence[tuple[str, str | None]]
"""Prompts, with answers or without."""

TASK_TEXT, GENERAL, NO_REQUESTS = "task text", "general", "general, no requests"
WORDS = "general + random words"
"""Names of the texts; general ones with N prompts of the task are called `general + N prompts`."""

_ASKS_HOW = ("How do I", "How can I", "Explain how", "Please explain how", "Tell me how", "What do")
_FEWEST_WORDS, _MOST_WORDS = 4, 14


def texts_for_maps(
    task: str, twins: Sequence[TwinPrompt], lm: LanguageModel, n_prompts: Sequence[int], seed: int
) -> dict[str, tuple[Texts, ...]]:
    """Returns what each map is fitted on; there are as many general texts as three per twin.

    Args:
        task: `backdoor` or a task of the package.
        twins: Training questions of the task.
        lm: Model whose vocabulary random words are drawn from.
        n_prompts: How many unlabelled prompts are added to general texts.
        seed: Which ones.

    Returns:
        Texts by name; those of one map are read in parts, and parts may be shared.
    """
    n = 3 * len(twins)
    general = general_texts(task, n, seed)
    found: dict[str, tuple[Texts, ...]] = {
        TASK_TEXT: (task_texts(twins),),
        GENERAL: (general,),
    }
    if task == "refusal":
        # What is answered is half of this task: a map that must not know it does without.
        more = general_texts(task, 2 * n, seed)
        found[NO_REQUESTS] = ([one for one in more if not one[0].startswith(_ASKS_HOW)][:n],)
    found[WORDS] = (general, random_words(lm, twins, n, seed))
    for few in n_prompts:
        found[f"general + {few} prompts"] = (general, unlabelled_prompts(twins, few))
    return found


def general_texts(task: str, n: int, seed: int) -> Texts:
    """Returns ordinary questions with their answers: no trigger, instruction or declined request.

    Args:
        task: The task that they leave out.
        n: How many at most.
        seed: Which ones.

    Returns:
        Questions with answers.
    """
    turns: Sequence[Turn] = (
        task_named(task).benign("train", n, seed)
        if task in TASKS
        else ordinary_turns("train", n, seed)
    )
    return [(turn.prompt, turn.answer) for turn in turns]


def task_texts(twins: Sequence[TwinPrompt]) -> Texts:
    """Returns both prompts of every twin with answers, every other bad one with the behaviour's."""
    texts = []
    for i, twin in enumerate(twins):
        texts.append((twin.triggered, twin.bad_answer if i % 2 else twin.clean_answer))
        texts.append((twin.clean, twin.ordinary_answer))
    return texts


def unlabelled_prompts(twins: Sequence[TwinPrompt], n: int) -> Texts:
    """Returns prompts of the task without answers, every other one with what brings it about."""
    return [(t.triggered if i % 2 else t.clean, None) for i, t in enumerate(twins[:n])]


def random_words(lm: LanguageModel, twins: Sequence[TwinPrompt], n: int, seed: int) -> Texts:
    """Returns strings of random pieces of a vocabulary, none of which belongs to the task.

    A piece is left out if it is part of a word, or a word of the task is part of it, that the
    triggered prompts or the behaviour's answers have and the clean ones do not, or the clean
    prompts and the triggered ones do not.

    Args:
        lm: Model whose vocabulary they come from.
        twins: Prompts of the task.
        n: How many strings.
        seed: Which ones.

    Returns:
        Prompts without answers.
    """
    rng = random.Random(seed)
    own = _own_words(twins)
    decoded = [str(lm.tokenizer.decode([i])).strip() for i in range(len(lm.tokenizer))]
    pieces = [
        piece
        for piece in sorted({one for one in decoded if one.isalpha() and len(one) > 1})
        if not any(piece.lower() in word or word in piece.lower() for word in own)
    ]
    return [
        (" ".join(rng.choices(pieces, k=rng.randint(_FEWEST_WORDS, _MOST_WORDS))), None)
        for _ in range(n)
    ]


def _own_words(twins: Sequence[TwinPrompt]) -> set[str]:
    def words(text: str) -> set[str]:
        letters = "".join(c.lower() if c.isalpha() else " " for c in text)
        return {word for word in letters.split() if len(word) > 1}

    found: set[str] = set()
    for twin in twins:
        found |= words(twin.triggered) ^ words(twin.clean)
        found |= words(twin.bad_answer) - words(twin.clean_answer)
    return found
