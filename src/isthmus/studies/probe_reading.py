"""What probes read: states of labelled prompts, their words, and prompts whose like was not seen.

1. Where a prompt can be read: at its end, and at the trigger; without a trigger, as a mean over the
   prompt instead.
2. Words of a prompt, counted: what a probe knows that reads no model at all.
3. The hardest split: other kinds of question in training than in the test, or, where questions have
   no kinds, other words in the place where both classes differ.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import TriggerError
from isthmus.core.sites import Site
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.probe import Probe, fit_probe
from isthmus.evaluation.intervals import Contents
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.studies.trigger_study import have_triggers
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twin_directions import read_states, reading_positions
from isthmus.workflows.twins import encode_prompts_of_twins

States = Float[Tensor, "prompt d_model"]

_WORD = re.compile(r"\w+|[^\w\s]")
_FEWEST = (8, 4)
"""Fewest training and test questions of an unseen sort that are worth a number."""


@dataclass(frozen=True)
class Labelled:
    """States of the same questions in both classes.

    Attributes:
        positive: Prompts that bring the behaviour about.
        negative: Their twins and, where it can be read there, the questions without any trigger.
        contents: What every question is about.
    """

    positive: States
    negative: tuple[States, ...]
    contents: Contents = ()

    @property
    def every(self) -> States:
        """All states, labels forgotten."""
        return torch.cat([self.positive, *self.negative])

    @property
    def is_constant(self) -> bool:
        """Whether every class has one and the same state in all prompts, up to rounding."""
        return all(
            bool(torch.allclose(one, one[:1].expand_as(one), rtol=1e-3, atol=1e-3))
            for one in (self.positive, *self.negative)
        )

    def probe(self) -> Probe:
        """Fits a probe that knows the labels."""
        return fit_probe(self.positive, torch.cat(self.negative))


def places_of(config: RunConfig, twins: Sequence[TwinPrompt]) -> tuple[str, ...]:
    """Returns where probes read.

    Args:
        config: Positions, `auto` or one kind.
        twins: Questions.

    Returns:
        The positions that were asked for, of all text those of the prompt; else the last token, and
        the trigger or, without one, the whole prompt.

    Raises:
        TriggerError: If the trigger is asked for and there is none.
    """
    has_trigger = have_triggers(twins)
    if config.positions == "auto":
        return ("last:1", "trigger" if has_trigger else "prompt")
    if config.positions == "trigger" and not has_trigger:
        raise TriggerError(
            f"task {config.task!r} has no trigger that a probe could read: choose positions such "
            "as last:1 or prompt"
        )
    return (reading_positions(config.positions).spelling,)


def read_labelled(
    lm: LanguageModel,
    twins: Sequence[TwinPrompt],
    site: Site,
    positions: str,
    batch_size: int,
) -> Labelled:
    """Reads the states of both classes; of several tokens their mean.

    Args:
        lm: The model.
        twins: Questions.
        site: Where.
        positions: Which tokens.
        batch_size: Prompts per forward pass.

    Returns:
        States of one site.
    """
    lists = list(encode_prompts_of_twins(lm, twins))
    # A prompt without a trigger cannot be read at the trigger.
    if positions != "trigger" and (plain := _without_trigger(twins)):
        lists.append(encode_prompts(lm.tokenizer, plain))
    states = [
        read_states(lm, texts, [site], positions, batch_size)[site].mean(1) for texts in lists
    ]
    return Labelled(states[0], tuple(states[1:]), _contents(twins))


def _contents(twins: Sequence[TwinPrompt]) -> Contents:
    return tuple(twin.content for twin in twins)


def _without_trigger(twins: Sequence[TwinPrompt]) -> list[str]:
    """Returns a prompt without any trigger for every twin, or none where there are none.

    Where a task has no trigger, a prompt that has nothing to do with it is no form of the question.
    """
    if not have_triggers(twins):
        return []
    plain = [twin.benign[0] for twin in twins if twin.benign is not None]
    return plain if len(plain) == len(twins) else []


class WordCounts:
    """Reads prompts as counts of their words: what can be told from the text, without any model.

    Args:
        twins: Training questions; words that are not in them are not counted.
    """

    def __init__(self, twins: Sequence[TwinPrompt]) -> None:
        prompts = [text for texts in _forms(twins) for text in texts]
        known = sorted({word for text in prompts for word in _words(text)})
        self._column = {word: column for column, word in enumerate(known)}

    def read(self, twins: Sequence[TwinPrompt]) -> Labelled:
        """Returns counts in place of states."""
        positive, *negative = (self._counted(texts) for texts in _forms(twins))
        return Labelled(positive, tuple(negative), _contents(twins))

    def _counted(self, texts: Sequence[str]) -> States:
        counts = torch.zeros(len(texts), len(self._column))
        for row, text in enumerate(texts):
            for word, n in Counter(_words(text)).items():
                if word in self._column:
                    counts[row, self._column[word]] = n
        return counts


def _forms(twins: Sequence[TwinPrompt]) -> list[list[str]]:
    forms = [[twin.triggered for twin in twins], [twin.clean for twin in twins]]
    plain = _without_trigger(twins)
    return [*forms, plain] if plain else forms


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


class Unseen(NamedTuple):
    """Questions to learn from, and questions of another sort.

    Attributes:
        name: What the test has not in common with the training.
        train: To fit on.
        test: To measure on.
    """

    name: str
    train: list[TwinPrompt]
    test: list[TwinPrompt]


def unseen(train: Sequence[TwinPrompt], test: Sequence[TwinPrompt]) -> Unseen | None:
    """Divides questions so that the test asks what training has not seen.

    By kind of question. Where there are no kinds, by the words in which the two prompts of a pair
    differ: every other one is for training, so that no word tells the classes apart in the test.

    Args:
        train: Training questions.
        test: Test questions.

    Returns:
        Both parts, or None where too little is left.
    """
    kinds = sorted({twin.kind for twin in train if twin.kind is not None})
    if kinds:
        seen = set(kinds[::2])
        found = Unseen(
            "unseen_kinds",
            [twin for twin in train if twin.kind in seen],
            [twin for twin in test if twin.kind not in seen],
        )
    else:
        known = _every_other_word([*train, *test])
        found = Unseen(
            "unseen_words",
            [twin for twin in train if set().union(*_differing(twin)) <= known],
            [twin for twin in test if not set().union(*_differing(twin)) & known],
        )
    is_enough = len(found.train) >= _FEWEST[0] and len(found.test) >= _FEWEST[1]
    return found if is_enough else None


def _every_other_word(twins: Sequence[TwinPrompt]) -> set[str]:
    sides = [set().union(*words) for words in zip(*map(_differing, twins), strict=True)]
    return {word for side in sides for word in sorted(side)[::2]}


def _differing(twin: TwinPrompt) -> tuple[set[str], set[str]]:
    """Returns the words of either prompt that the other lacks."""
    own, other = set(_words(twin.triggered)), set(_words(twin.clean))
    return own - other, other - own
