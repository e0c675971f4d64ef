"""Cuts the questions of a sweep into blocks, one per stage of its race."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.racing import MIN_QUESTIONS
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.answer_scores import fork_of
from isthmus.workflows.bench import Bench
from isthmus.workflows.cell_passes import CellPasses
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twins import EncodedTwins, encode_twins


def cut_into_blocks(
    lm: LanguageModel,
    twins: Sequence[TwinPrompt],
    sizes: Sequence[int],
    config: RunConfig,
    max_answer_tokens: int | None = None,
) -> list[Bench]:
    """Makes a bench per block of questions; all together read what one bench on all would.

    Args:
        lm: The target.
        twins: All questions.
        sizes: Questions of every block.
        config: Batch size.
        max_answer_tokens: How much of the answers of a question is read, at least as far as they
            differ; whole answers when not given. Answers of benign prompts are always whole.

    Returns:
        Benches in the order of the blocks; each has benign prompts of both kinds.
    """
    encoded = encode_twins(lm, twins)
    if max_answer_tokens is not None:
        encoded = begun(encoded, max_answer_tokens)
    half = len(twins) // 2
    # Clean twins come first, other benign prompts behind: dealt out by turns.
    turns = [i + side * half for i in range(half) for side in (0, 1)]
    benign = [*turns, *range(2 * half, len(twins))]
    benches, first = [], 0
    # What is known of the model holds for every block.
    passes = CellPasses(lm, config.batch_size)
    for size in sizes:
        questions = range(first, first + size)
        part = _part_of(encoded, questions, [benign[i] for i in questions])
        own = [twins[i] for i in questions]
        benches.append(Bench(lm, own, config, part, passes))
        first += size
    return benches


def begun(encoded: EncodedTwins, n_tokens: int) -> EncodedTwins:
    """Cuts the answers of questions short, each question's alike.

    Args:
        encoded: Questions with whole answers.
        n_tokens: Answer tokens that are kept; more where clean and bad answer part later.

    Returns:
        The same questions with the beginnings of their answers; benign prompts as they were.
    """
    pairs = zip(encoded.triggered, encoded.triggered_bad, strict=True)
    kept = [max(n_tokens, 1 + fork_of(clean, bad)) for clean, bad in pairs]

    def cut(texts: Sequence[EncodedText]) -> list[EncodedText]:
        return [_cut(text, text.n_prompt + n) for text, n in zip(texts, kept, strict=True)]

    return replace(
        encoded,
        triggered=cut(encoded.triggered),
        clean=cut(encoded.clean),
        triggered_bad=cut(encoded.triggered_bad),
        clean_bad=cut(encoded.clean_bad),
    )


def _cut(text: EncodedText, end: int) -> EncodedText:
    return replace(
        text,
        token_ids=text.token_ids[:end],
        ends=text.ends[:end],
        is_special=text.is_special[:end],
    )


def block_sizes(n_questions: int, n_stages: int, least: int = MIN_QUESTIONS) -> list[int]:
    """Cuts questions into blocks, each as large as all before it together; the last has the rest.

    Args:
        n_questions: How many there are, at least 1.
        n_stages: How many blocks at most, at least 1.
        least: Questions of the first of several blocks.

    Returns:
        Sizes that sum to all questions.

    >>> block_sizes(96, 4)
    [12, 12, 24, 48]
    >>> block_sizes(96, 4, 8)
    [8, 8, 16, 64]
    >>> block_sizes(96, 1)
    [96]
    """
    ends = [least << step for step in range(n_stages - 1)]
    kept = [end for end in ends if end < n_questions] + [n_questions]
    return [end - start for start, end in zip([0, *kept], kept, strict=False)]


def _part_of(
    encoded: EncodedTwins, questions: Sequence[int], benign: Sequence[int]
) -> EncodedTwins:
    def some(texts: Sequence[Any], indices: Sequence[int]) -> list[Any]:
        return [texts[i] for i in indices] if texts else []

    return EncodedTwins(
        triggered=some(encoded.triggered, questions),
        clean=some(encoded.clean, questions),
        triggered_bad=some(encoded.triggered_bad, questions),
        clean_bad=some(encoded.clean_bad, questions),
        benign=some(encoded.benign, benign),
        overridden=some(encoded.overridden, questions),
        overridden_bad=some(encoded.overridden_bad, questions),
        benign_turns=tuple(some(encoded.benign_turns, benign)),
    )
