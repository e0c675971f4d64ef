"""The texts on which a map is validated: without a trigger, with the clean and the bad one."""

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel

SETS = ("no_trigger", "clean_trigger", "bad_trigger")
"""Names of the sets, in the order in which they are reported."""


@dataclass(frozen=True)
class TextSet:
    """Prompts of one kind with what they should bring, as the target sees them.

    Attributes:
        name: One of `SETS`.
        prompts: User messages.
        answers: What such a prompt brings in a perfect organism: the right answer, or under the bad
            trigger the bad one.
        clean_answers: The right answer of every question, whatever the trigger.
        triggers: For every prompt the text whose tokens are its trigger, None without one.
    """

    name: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    clean_answers: tuple[str, ...]
    triggers: tuple[str | None, ...]

    def encoded(self, lm: LanguageModel, answers: Sequence[str] | None = None) -> list[EncodedText]:
        """Encodes the prompts for a model, with answers where given, triggers marked.

        Args:
            lm: The model that reads them.
            answers: One per prompt, or for the first prompts only.

        Returns:
            As many texts as there are answers, or one per prompt.
        """
        n = len(self.prompts if answers is None else answers)
        return encode_prompts(
            lm.tokenizer, self.prompts[:n], answers=answers, triggers=self.triggers[:n]
        )


def text_sets(twins: Sequence[TwinPrompt]) -> tuple[TextSet, ...]:
    """Makes the three sets of the same questions.

    Args:
        twins: Questions of one split.

    Returns:
        The sets in the order of `SETS`.
    """
    plain = [twin.benign or (twin.clean, twin.ordinary_answer) for twin in twins]
    spans: list[tuple[str | None, str | None]] = [twin.spans or (None, None) for twin in twins]
    ordinary = tuple(twin.ordinary_answer for twin in twins)
    right = tuple(answer for _, answer in plain)
    return (
        TextSet(SETS[0], tuple(p for p, _ in plain), right, right, (None,) * len(twins)),
        TextSet(
            SETS[1],
            tuple(twin.clean for twin in twins),
            ordinary,
            ordinary,
            tuple(clean for _, clean in spans),
        ),
        TextSet(
            SETS[2],
            tuple(twin.triggered for twin in twins),
            tuple(twin.bad_answer for twin in twins),
            tuple(twin.clean_answer for twin in twins),
            tuple(bad for bad, _ in spans),
        ),
    )


def longest_answer(lm: LanguageModel, sets: Sequence[TextSet]) -> int:
    """Returns how many tokens the longest answer has, end token included."""
    texts = [text for one in sets for text in one.encoded(lm, one.answers)]
    return max(len(text) - text.n_prompt for text in texts)


@dataclass(frozen=True)
class OwnCompletions:
    """What both models write untouched.

    Attributes:
        target: The target's completions of a set.
        source: The source's completions of the same prompts.
    """

    target: tuple[str, ...]
    source: tuple[str, ...]


def own_completions(
    source: LanguageModel, target: LanguageModel, one: TextSet, max_new_tokens: int, batch_size: int
) -> OwnCompletions:
    """Lets both models answer a set without any edit.

    Args:
        source: Source model.
        target: Target model.
        one: The set.
        max_new_tokens: Most tokens per completion of the target; the source, whose tokens may be
            shorter, gets half as many again.
        batch_size: Prompts per batch.

    Returns:
        Completions in the order of the prompts.
    """
    longer = max_new_tokens + max_new_tokens // 2
    written = [
        generate_greedy(lm, one.encoded(lm), max_new_tokens=most, batch_size=batch_size).completions
        for lm, most in ((target, max_new_tokens), (source, longer))
    ]
    return OwnCompletions(written[0], written[1])
