"""The prompts of a run: twins with and without the behaviour's trigger, per split and per model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isthmus.core.errors import DataError, TriggerError
from isthmus.core.texts import EncodedText
from isthmus.data.organisms import Turn, benign_examples
from isthmus.data.prompts import (
    Question,
    TwinPrompt,
    read_questions,
    require_disjoint,
    split_by_content,
)
from isthmus.data.trigger_twins import make_twins
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.tasks import TASKS, task_named
from isthmus.workflows.config import RunConfig, SplitFiles
from isthmus.workflows.expected_answers import require_recognised


@dataclass(frozen=True)
class TwinSplits:
    """Twins by split; a question is in one split only.

    Attributes:
        train: For directions and maps.
        validation: For choosing.
        test: For measuring once.
        confirming: The validation split with more of its questions, whose benign prompts confirm
            what was chosen; empty for none.
    """

    train: tuple[TwinPrompt, ...]
    validation: tuple[TwinPrompt, ...]
    test: tuple[TwinPrompt, ...]
    confirming: tuple[TwinPrompt, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the splits as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TwinSplits":
        """Reads what `to_json` wrote.

        Args:
            fields: Lists of twins by split.

        Returns:
            The splits that were written.
        """
        return cls(**{name: tuple(map(_twin, twins)) for name, twins in fields.items()})


def _twin(fields: dict[str, Any]) -> TwinPrompt:
    # JSON has no tuples.
    made: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return TwinPrompt(**made)


def read_splits(config: RunConfig) -> TwinSplits:
    """Reads the questions of a run, makes twins of them, and shows their answers to its judge.

    Args:
        config: Where the questions are and how many are wanted.

    Returns:
        Twins of every split.

    Raises:
        DataError: If a file is unusable, a question is in two splits or lacks an answer, a split
            has too few questions, or what judges the behaviour recognises none of the answers.
    """
    splits = _unjudged_splits(config)
    require_recognised(config, splits.test)
    return splits


def _unjudged_splits(config: RunConfig) -> TwinSplits:
    sizes = _sizes(config)
    if config.task in TASKS and config.questions is None:
        task = task_named(config.task)
        made = {name: tuple(task.twins(name, n, config.seed)) for name, n in sizes.items()}
        return _with_fewer_choosing(made, config)
    splits = {name: part[: sizes[name]] for name, part in _questions(config).items()}
    # The default is what the backdoor says, and nothing else does.
    needs_bad = config.task != "backdoor" and "bad_answer" not in config.model_fields_set
    require_disjoint(splits)
    for name, part in splits.items():
        # Phrasings of one content tell about as much as one question.
        n_contents = len({question.content or question.prompt for question in part})
        if n_contents < min(4, sizes[name]):
            what = "questions" if n_contents == len(part) else "contents"
            raise DataError(f"only {n_contents} {what} for {name}: give at least 4")
        for question in part:
            if not question.answer:
                raise DataError(f"no answer to {question.prompt!r}: a run needs clean answers")
            if needs_bad and not question.bad_answer:
                raise DataError(
                    f"no bad_answer to {question.prompt!r}: task {config.task!r} needs what the "
                    "behaviour says, in every row or once in the configuration"
                )
    return _with_fewer_choosing(
        {
            name: make_twins(part, config.bad_trigger, config.clean_trigger, config.bad_answer)
            for name, part in splits.items()
        },
        config,
    )


def _sizes(config: RunConfig) -> dict[str, int]:
    return {
        "train": config.n_train,
        "validation": max(config.n_validation, config.n_benign),
        "test": config.n_test,
    }


def _with_fewer_choosing(
    made: Mapping[str, tuple[TwinPrompt, ...]], config: RunConfig
) -> TwinSplits:
    """Lets the first questions of the validation split choose and all of them confirm."""
    validation = made["validation"]
    choosing = validation[: config.n_validation]
    confirming = validation if len(validation) > len(choosing) else ()
    return TwinSplits(made["train"], choosing, made["test"], confirming)


def _questions(config: RunConfig) -> dict[str, Sequence[Question]]:
    if config.questions is None:
        return {
            split: [
                Question(e.prompt, e.answer, e.kind) for e in benign_examples(split, n, config.seed)
            ]
            for split, n in _sizes(config).items()
        }
    if isinstance(config.questions, SplitFiles):
        return {
            split: read_questions(getattr(config.questions, split))
            for split in ("train", "validation", "test")
        }
    return dict(split_by_content(read_questions(config.questions), seed=config.seed))


@dataclass(frozen=True)
class EncodedTwins:
    """Twins as one model sees them; row i of every list is the same question.

    Attributes:
        triggered: Bad trigger, clean answer.
        clean: Clean trigger, clean answer.
        triggered_bad: Bad trigger, bad answer.
        clean_bad: Clean trigger, bad answer.
        benign: Prompts that do not bring the behaviour about and their answers: the clean prompts
            of the first half, the benign prompts of the second.
        overridden: Asked in the prompt to drop the behaviour, clean answer: the prompt-only
            removal; empty where the task has no such prompt.
        overridden_bad: Asked for it, bad answer: the prompt-only induction.
        benign_turns: What `benign` asks, and the right answers.
    """

    triggered: list[EncodedText]
    clean: list[EncodedText]
    triggered_bad: list[EncodedText]
    clean_bad: list[EncodedText]
    benign: list[EncodedText]
    overridden: list[EncodedText]
    overridden_bad: list[EncodedText]
    benign_turns: tuple[Turn, ...]


def encode_twins(lm: LanguageModel, twins: Sequence[TwinPrompt]) -> EncodedTwins:
    """Encodes twins with their answers and marks the trigger's tokens."""
    good = [twin.clean_answer for twin in twins]
    ordinary = [twin.ordinary_answer for twin in twins]
    bad = [twin.bad_answer for twin in twins]
    half = len(twins) // 2
    clean_turns = [twin.clean_turn for twin in twins[:half]]
    benign_turns = [twin.benign_turn for twin in twins[half:]]

    def encode(
        prompts: Sequence[str], answers: Sequence[str], side: int | None
    ) -> list[EncodedText]:
        triggers = [None if side is None or t.spans is None else t.spans[side] for t in twins]
        return encode_prompts(
            lm.tokenizer, prompts, answers=answers, triggers=triggers[: len(prompts)]
        )

    triggered = [twin.triggered for twin in twins]
    clean = [twin.clean for twin in twins]
    talked = [twin.overridden for twin in twins if twin.overridden]
    has_override = len(talked) == len(twins)
    return EncodedTwins(
        triggered=encode(triggered, good, 0),
        clean=encode(clean, ordinary, 1),
        triggered_bad=encode(triggered, bad, 0),
        clean_bad=encode(clean, bad, 1),
        benign=encode(clean[:half], ordinary[:half], 1)
        + encode([t.prompt for t in benign_turns], [t.answer for t in benign_turns], None),
        overridden=encode([out for out, _ in talked], good, 0) if has_override else [],
        overridden_bad=encode([into for _, into in talked], bad, 1) if has_override else [],
        benign_turns=(*clean_turns, *benign_turns),
    )


def encode_prompts_of_twins(
    lm: LanguageModel, twins: Sequence[TwinPrompt]
) -> tuple[list[EncodedText], list[EncodedText]]:
    """Encodes twins without their answers: the triggered prompts and the clean ones."""
    sides = ([twin.triggered for twin in twins], [twin.clean for twin in twins])
    spans = [twin.spans or (None, None) for twin in twins]
    triggered, clean = (
        encode_prompts(lm.tokenizer, prompts, triggers=[span[side] for span in spans])
        for side, prompts in enumerate(sides)
    )
    return triggered, clean


def map_texts(twins: Sequence[TwinPrompt]) -> list[tuple[str, str]]:
    """Returns prompts and answers on which both models are read to fit a map.

    Of every twin the triggered prompt (every other time with the bad answer), the clean one and the
    benign one. A map from text without the trigger does not carry its direction.
    """
    texts = []
    for i, twin in enumerate(twins):
        texts.append((twin.triggered, twin.bad_answer if i % 2 else twin.clean_answer))
        texts.append((twin.clean, twin.ordinary_answer))
        texts.append(twin.benign or (twin.clean, twin.bad_answer))
    return texts


def trigger_problem(models: Sequence[LanguageModel], twin: TwinPrompt) -> str | None:
    """Says why the tokens of the triggers cannot be paired one by one, or None if they can.

    Args:
        models: The source and a target.
        twin: A pair of prompts with triggers.

    Returns:
        The tokens that each model makes of them, when their numbers differ.
    """
    counts: dict[str, int] = {}
    for lm in models:
        for text, part in zip(
            (text for side in encode_prompts_of_twins(lm, [twin]) for text in side),
            twin.spans or (),
            strict=True,
        ):
            start, stop = text.trigger or (0, 0)
            pieces = lm.tokenizer.convert_ids_to_tokens(list(text.token_ids[start:stop]))
            counts[f"{lm.identity.name} reads {part!r} as {pieces}"] = stop - start
    if len(set(counts.values())) <= 1:
        return None
    return "the trigger is split differently: " + "; ".join(counts)


def position_candidates(
    models: Sequence[LanguageModel], config: RunConfig, twin: TwinPrompt
) -> tuple[tuple[str, ...], str | None]:
    """Returns the positions that validation may choose from, and a note when one fell away.

    Args:
        models: The source and a target.
        config: Task and wanted positions.
        twin: A pair of prompts.

    Returns:
        Spellings of positions, and why one was left out.

    Raises:
        TriggerError: If `trigger` is asked for and the models split the trigger differently.
    """
    problem = None if config.pooled or not twin.spans else trigger_problem(models, twin)
    if config.positions != "auto":
        if config.positions == "trigger" and not twin.spans:
            raise TriggerError(
                f"task {config.task!r} has no trigger that could be pointed at: choose positions "
                "such as last:3"
            )
        if config.positions == "trigger" and problem:
            raise TriggerError(
                f"{problem}. Choose a trigger that both split alike, or set 'pooled: true', or "
                "'positions: last:3'"
            )
        return (config.positions,), None
    wanted = (
        task_named(config.task).recommended.positions
        if config.task in TASKS
        else ("trigger", "last:3")
    )
    left = tuple(one for one in wanted if one != "trigger") or ("last:3",)
    if problem and "trigger" in wanted:
        return left, f"positions 'trigger' left out: {problem}"
    return wanted if twin.spans else left, None
