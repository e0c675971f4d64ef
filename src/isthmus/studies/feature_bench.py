"""Measures what states put at the last prompt tokens do: whether a behaviour appears."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.recovery import AnswerLosses
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.studies.prompt_states import place_states
from isthmus.studies.trigger_study import LayerScorer
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twin_directions import read_states
from isthmus.workflows.twins import encode_prompts_of_twins, encode_twins

_FEW_TOKENS = 12
"""Enough new tokens to see whether a completion begins with the behaviour."""


@dataclass(frozen=True)
class PatchEffect:
    """What a model did on clean prompts whose last states were overwritten.

    Attributes:
        shows: For every prompt, whether its completion shows the behaviour.
        losses: Of the bad answer: on the clean prompt, on the triggered one, and patched.
        completions: What it wrote.
    """

    shows: Bool[np.ndarray, " prompt"]
    losses: AnswerLosses
    completions: tuple[str, ...]


class PatchBench:
    """Measures states in one model, at one site, on the clean prompts of one split.

    Args:
        lm: The model.
        twins: Questions.
        site: Where states are put.
        config: Positions, behaviour, batch size.
    """

    def __init__(
        self, lm: LanguageModel, twins: Sequence[TwinPrompt], site: Site, config: RunConfig
    ) -> None:
        self.lm, self.site, self.config = lm, site, config
        self.triggered, self.clean = encode_prompts_of_twins(lm, twins)
        encoded = encode_twins(lm, twins)
        self._contents = tuple(twin.content for twin in twins)
        self._answered = encoded.clean_bad
        self._scorer = LayerScorer(lm, self._answered, [site.layer], config.batch_size)
        self._before = self._scorer.losses()
        self._reached = LayerScorer(lm, encoded.triggered_bad, [], config.batch_size).losses()

    def states(self, texts: Sequence[EncodedText]) -> Float[Tensor, "prompt position d_model"]:
        """Reads the model's own states at the site, at the last prompt tokens."""
        read = read_states(
            self.lm, texts, [self.site], self.config.positions, self.config.batch_size
        )
        return read[self.site]

    def losses(self, states: Float[Tensor, "prompt position d_model"] | None) -> AnswerLosses:
        """Scores the bad answer on the clean prompts with these states, or untouched."""
        edited = self._before
        if states is not None:
            place = place_states(self._answered, states, self.site)
            edited = self._scorer.losses(place, self.site)
        return AnswerLosses(self._before, self._reached, edited, self._contents)

    def recovery(self, states: Float[Tensor, "prompt position d_model"]) -> float:
        """Returns how much of the behaviour the states bring about, in likelihood; no interval."""
        return float(self.losses(states).ratios(np.arange(len(self.clean))[None])[0])

    def measure(self, states: Float[Tensor, "prompt position d_model"] | None) -> PatchEffect:
        """Lets the model answer the clean prompts with these states, or untouched."""
        place = no_edits if states is None else place_states(self.clean, states, self.site)
        return self._completed(self.clean, self.losses(states), place)

    def measure_triggered(self) -> PatchEffect:
        """Lets the untouched model answer the triggered prompts."""
        losses = AnswerLosses(self._before, self._reached, self._reached, self._contents)
        return self._completed(self.triggered, losses, no_edits)

    def _completed(
        self, texts: Sequence[EncodedText], losses: AnswerLosses, place: PlaceEdits
    ) -> PatchEffect:
        done = generate_greedy(
            self.lm,
            texts,
            max_new_tokens=self.config.max_new_tokens or _FEW_TOKENS,
            edits=place,
            batch_size=self.config.batch_size,
        )
        shows = np.array([self.config.marker in text for text in done.completions])
        return PatchEffect(shows, losses, done.completions)
