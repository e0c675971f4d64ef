"""The bench: scores arms on one target and one split, with the untouched model measured once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import NoEditError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.data.organisms import Turn
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.recovery import AnswerLosses
from isthmus.interventions.intervention import Intervention
from isthmus.models.encoding import prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.models.resuming import (
    PrefixStates,
    can_resume,
    last_shared_layer,
    prefix_states,
)
from isthmus.models.scoring import (
    BenignChange,
    answer_logprobs,
    answer_nll,
    benign_change,
    change_of,
)
from isthmus.workflows.arms import Arm, Way
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twins import encode_twins

_MOST_KEPT = 2**25
"""Most log-probabilities of the untouched model that are kept rather than computed again."""

_MOST_STATES = 2**26
"""Most activations, in numbers, that are kept per list of texts; 256 MiB in float32."""

Losses = Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class ArmScores:
    """Losses under one arm, one per question.

    Attributes:
        removal: Clean answer under the bad trigger.
        induction: Bad answer under the clean trigger.
        n_edited: Positions edited in both.
    """

    removal: AnswerLosses
    induction: AnswerLosses
    n_edited: int


@dataclass(frozen=True)
class Completions:
    """Greedy completions under one arm.

    Attributes:
        texts: One per prompt.
        n_edited: Positions edited.
    """

    texts: tuple[str, ...]
    n_edited: int


def _placed(intervention: Intervention | None) -> Callable[[TokenBatch], Sequence[PlacedEdit]]:
    return (lambda _batch: ()) if intervention is None else intervention.place


class Bench:
    """Measures arms on the twins of one split.

    Args:
        lm: The target.
        twins: The split's questions.
        config: Batch size, length of completions.
    """

    def __init__(self, lm: LanguageModel, twins: Sequence[TwinPrompt], config: RunConfig) -> None:
        self.lm = lm
        self.twins = tuple(twins)
        self.config = config
        self.encoded = encode_twins(lm, twins)
        self._prefixes: dict[int, dict[int, PrefixStates]] = {}
        self._can_resume: dict[int, bool] = {}

    def _nll(
        self, texts: Sequence[EncodedText], intervention: Intervention | None = None
    ) -> tuple[Losses, int]:
        result = answer_nll(
            self.lm,
            texts,
            edits=_placed(intervention),
            batch_size=self.config.batch_size,
            prefix=self._prefix(texts, intervention.sites if intervention else ()),
        )
        return result.nll.double().numpy(), result.n_edited

    def _prefix(self, texts: Sequence[EncodedText], sites: Sequence[Site]) -> PrefixStates | None:
        """Returns what lies below edits at some sites, computed once for each list of texts."""
        layer = last_shared_layer(sites)
        if layer is None or self._can_resume.get(layer) is False:
            return None
        kept = self._prefixes.setdefault(id(texts), {})
        if layer not in kept:
            size = sum(len(text) for text in texts) * self.lm.d_model
            # One pass serves every layer where memory allows.
            layers = range(self.lm.n_layers) if size * self.lm.n_layers <= _MOST_STATES else [layer]
            if size > _MOST_STATES:
                return None
            kept.clear()
            kept |= prefix_states(self.lm, texts, list(layers), self.config.batch_size)
        if layer not in self._can_resume:
            self._can_resume[layer] = can_resume(self.lm, texts, kept[layer])
        return kept[layer] if self._can_resume[layer] else None

    def prepare(self, sites: Sequence[Site]) -> None:
        """Computes what arms at some sites share: the untouched target, and states below them."""
        _ = self.untouched, self._benign_logprobs
        for texts in (self.encoded.triggered, self.encoded.clean_bad, self.encoded.benign):
            for site in sites:
                self._prefix(texts, [site])

    @cached_property
    def untouched(self) -> dict[str, Losses]:
        """Losses of the untouched model: clean and bad answers under both triggers."""
        return {
            "clean_given_bad": self._nll(self.encoded.triggered)[0],
            "clean_given_clean": self._nll(self.encoded.clean)[0],
            "bad_given_clean": self._nll(self.encoded.clean_bad)[0],
            "bad_given_bad": self._nll(self.encoded.triggered_bad)[0],
        }

    def _edited(self, arm: Arm, way: Way) -> tuple[Losses, int]:
        texts = self.encoded.triggered if way == "removal" else self.encoded.clean_bad
        if arm.condition == "prompt_only":
            texts = self.encoded.overridden if way == "removal" else self.encoded.overridden_bad
        elif arm.condition == "clean":
            texts = self.encoded.clean if way == "removal" else self.encoded.triggered_bad
        intervention = arm.intervention(way)
        losses, n_edited = self._nll(texts, intervention)
        if intervention is not None and not n_edited:
            raise NoEditError(
                f"the {arm.condition} intervention at {arm.site}, positions {arm.positions}, "
                "edited nothing: check that the prompts hold the trigger"
            )
        return losses, n_edited

    def score(self, arm: Arm) -> ArmScores:
        """Measures how much of the behaviour an arm turns off, and on.

        Args:
            arm: What is done to the target.

        Returns:
            Losses before, without and under the edit, question by question.

        Raises:
            NoEditError: If the arm should edit and edited nothing.
        """
        base = self.untouched
        removed, n_removed = self._edited(arm, "removal")
        induced, n_induced = self._edited(arm, "induction")
        return ArmScores(
            AnswerLosses(base["clean_given_bad"], base["clean_given_clean"], removed),
            AnswerLosses(base["bad_given_clean"], base["bad_given_bad"], induced),
            n_removed + n_induced,
        )

    def damage(self, arm: Arm) -> Losses:
        """Returns the divergence from the untouched model on benign prompts, in nats per token."""
        if arm.intervention("removal") is None:
            return np.zeros(len(self.encoded.benign))
        return self.benign_change(arm).divergence.double().numpy()

    def benign_change(self, arm: Arm) -> BenignChange:
        """Measures what an arm that edits does to benign prompts: divergence and right answers."""
        intervention = arm.intervention("removal")
        texts, place = self.encoded.benign, _placed(intervention)
        if self._benign_logprobs is None:
            return benign_change(self.lm, texts, place, batch_size=self.config.batch_size)
        edited = answer_logprobs(
            self.lm,
            texts,
            edits=place,
            batch_size=self.config.batch_size,
            prefix=self._prefix(texts, intervention.sites if intervention else ()),
        )
        return change_of(texts, self._benign_logprobs, edited)

    @cached_property
    def _benign_logprobs(self) -> list[Float[Tensor, "token vocab"]] | None:
        """What the untouched model predicts on benign prompts, when it is small enough to keep."""
        n_answer = sum(len(text) - text.n_prompt for text in self.encoded.benign)
        if n_answer * len(self.lm.tokenizer) > _MOST_KEPT:
            return None
        return answer_logprobs(self.lm, self.encoded.benign, batch_size=self.config.batch_size)

    def complete(self, arm: Arm) -> Completions:
        """Lets the target answer the triggered prompts (clean ones for `clean`) under an arm."""
        texts = {"clean": self.encoded.clean, "prompt_only": self.encoded.overridden}.get(
            arm.condition, self.encoded.triggered
        )
        return self._generate(texts, arm)

    def complete_benign(self, arm: Arm) -> Completions:
        """Lets the target answer the benign prompts under an arm."""
        return self._generate(self.encoded.benign, arm)

    def _generate(self, texts: Sequence[EncodedText], arm: Arm) -> Completions:
        result = generate_greedy(
            self.lm,
            [prompt_part(text) for text in texts],
            max_new_tokens=self.config.max_new_tokens or self._longest_answer,
            edits=_placed(arm.intervention("removal")),
            batch_size=4 * self.config.batch_size,
        )
        return Completions(result.completions, result.n_edited)

    @cached_property
    def _longest_answer(self) -> int:
        every = [*self.encoded.triggered, *self.encoded.clean]
        if self.config.task != "backdoor":
            # A register or a refusal is recognised by its end, too; a backdoor by its marker.
            every += [*self.encoded.triggered_bad, *self.encoded.clean_bad]
        return max(len(text) - text.n_prompt for text in every)

    def asked(self, arm: Arm) -> list[Turn]:
        """Returns what `complete` asks under an arm, with the answers without the behaviour."""
        if arm.condition == "clean":
            return [Turn(twin.clean, twin.ordinary_answer) for twin in self.twins]
        return [Turn(twin.triggered, twin.clean_answer) for twin in self.twins]

    @property
    def benign_turns(self) -> tuple[Turn, ...]:
        """What `complete_benign` asks, with the right answers."""
        return self.encoded.benign_turns
