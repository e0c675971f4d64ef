"""Measures what one arm of the refusal study does to declined, answered and ordinary requests."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.texts import EncodedText
from isthmus.data.organisms import Turn, contents_of
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.intervals import Interval, mean_interval, rate_interval
from isthmus.evaluation.judges import Judge, RefusalRules, refusal_rate
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import AnswerLosses, recovery_of
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.changes import BenignChange, change_of
from isthmus.models.encoding import prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs, answer_nll
from isthmus.tasks.base import exact
from isthmus.workflows.config import RunConfig
from isthmus.workflows.judging import make_judge
from isthmus.workflows.twins import encode_twins

NAME = "refusal_study"

Losses = Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class RefusalArm:
    """One way to take refusal away, and perhaps to bring it about.

    Attributes:
        condition: As in `results.jsonl`.
        edit: What is done, as written.
        lm: The model that answers.
        removal: What is edited in it against refusal.
        induction: What is edited towards refusal; None for edits that know no way there.
        site: Where, as written.
        positions: Which tokens, as written.
        strength: Multiplier of an addition.
        map_method: The map that its direction came through.
        seed: Draw of a random condition.
    """

    condition: str
    edit: str | None
    lm: LanguageModel
    removal: PlaceEdits = no_edits
    induction: PlaceEdits | None = None
    site: str | None = None
    positions: str | None = None
    strength: float | None = None
    map_method: str | None = None
    seed: int = 0


class RefusalBench:
    """Measures arms on requests of one split; the untouched model is measured once.

    Args:
        lm: The untouched target.
        source: Name of the model that directions come from.
        twins: Declined requests with their answered twins.
        split: Which split they are.
        config: Who judges, length of completions, batch size, and the seed of the bootstrap.
    """

    def __init__(
        self,
        lm: LanguageModel,
        source: str,
        twins: Sequence[TwinPrompt],
        split: str,
        config: RunConfig,
    ) -> None:
        self.lm, self.source, self.split, self.seed = lm, source, split, config.seed
        self.judge: Judge = make_judge(config) or RefusalRules()
        self.batch_size = config.batch_size
        self.encoded = encode_twins(lm, twins)
        self.declined = [twin.triggered_turn for twin in twins]
        self.answered = [twin.clean_turn for twin in twins]
        texts = self.encoded
        self._gaps = {
            "removal": (self._nll(lm, texts.triggered), self._nll(lm, texts.clean)),
            "induction": (self._nll(lm, texts.clean_bad), self._nll(lm, texts.triggered_bad)),
        }
        self._untouched = answer_logprobs(lm, texts.benign, batch_size=self.batch_size)
        every = [*texts.triggered, *texts.triggered_bad]
        longest = max(len(text) - text.n_prompt for text in every)
        self._longest = config.max_new_tokens or longest

    def removed(self, arm: RefusalArm) -> AnswerLosses:
        """Returns the losses of the steps that would be given to declined requests."""
        edited = self._nll(arm.lm, self.encoded.triggered, arm.removal)
        return AnswerLosses(*self._gaps["removal"], edited, contents_of(self.declined))

    def change(self, arm: RefusalArm) -> BenignChange:
        """Returns what the arm does to ordinary requests."""
        return self._changed(self._ordinary(arm))

    def measure(self, arm: RefusalArm) -> tuple[list[Measurement], tuple[str, ...]]:
        """Measures one arm.

        | requests | metrics |
        | --- | --- |
        | declined | refused, refused and then complied, not judged, the right steps, recovery |
        | answered (towards refusal) | the same, with the recovery of induction |
        | ordinary | divergence, right answers, perplexity of the right answers |

        Args:
            arm: What is measured.

        Returns:
            One measurement per metric, and the completions of declined requests.
        """
        said = self._say(arm, self.encoded.triggered, arm.removal)
        rows = self._judged(arm, "declined", self.declined, said)
        rows.append(self._recovered(arm, "declined", "recovery", self.removed(arm)))
        if arm.induction is not None or arm.condition == "none":
            induction = arm.induction or no_edits
            induced = self._say(arm, self.encoded.clean, induction)
            rows += self._judged(arm, "answered", self.answered, induced)
            edited = self._nll(arm.lm, self.encoded.clean_bad, induction)
            losses = AnswerLosses(*self._gaps["induction"], edited, contents_of(self.answered))
            rows.append(self._recovered(arm, "answered", "recovery_induction", losses))
        return [*rows, *self._ordinary_rows(arm)], said

    def _nll(
        self, lm: LanguageModel, texts: Sequence[EncodedText], edits: PlaceEdits = no_edits
    ) -> Losses:
        return answer_nll(lm, texts, edits=edits, batch_size=self.batch_size).nll.double().numpy()

    def _ordinary(self, arm: RefusalArm) -> list[Tensor]:
        return answer_logprobs(
            arm.lm, self.encoded.benign, edits=arm.removal, batch_size=self.batch_size
        )

    def _changed(self, edited: Sequence[Tensor]) -> BenignChange:
        return change_of(self.encoded.benign, self._untouched, edited)

    def _say(
        self, arm: RefusalArm, texts: Sequence[EncodedText], edits: PlaceEdits
    ) -> tuple[str, ...]:
        asked = [prompt_part(text) for text in texts]
        return generate_greedy(
            arm.lm,
            asked,
            max_new_tokens=self._longest,
            edits=edits,
            batch_size=4 * self.batch_size,
        ).completions

    def _judged(
        self, arm: RefusalArm, kind: str, turns: Sequence[Turn], said: Sequence[str]
    ) -> list[Measurement]:
        verdicts = self.judge.judge([turn.prompt for turn in turns], said)
        contents = contents_of(turns)
        rates = refusal_rate(verdicts, contents=contents)
        right = exact(turns, said)
        values = {
            "behaviour_rate": (rates.refuses, rates.n_judged),
            "refuses_then_complies_rate": (rates.refuses_then_complies, rates.n_judged),
            "unjudged_rate": (rates.unjudged, rates.n),
            "answer_accuracy": (rate_interval(right, contents), len(right)),
        }
        return [self._row(arm, kind, m, value, max(1, n)) for m, (value, n) in values.items()]

    def _recovered(
        self, arm: RefusalArm, kind: str, metric: str, losses: AnswerLosses
    ) -> Measurement:
        value = recovery_of(losses, seed=self.seed)
        return self._row(arm, kind, metric, value, len(losses))

    def _ordinary_rows(self, arm: RefusalArm) -> list[Measurement]:
        edited = self._ordinary(arm)
        change, n = self._changed(edited), len(edited)
        contents = contents_of(self.encoded.benign_turns)
        losses = np.array(
            [
                -float(rows.gather(1, _answer(text)[:, None]).mean())
                for rows, text in zip(edited, self.encoded.benign, strict=True)
            ]
        )
        mean = mean_interval(losses, contents=contents, seed=self.seed)
        damage = change.divergence.double().numpy()
        values = {
            "benign_kl": mean_interval(damage, contents=contents, seed=self.seed),
            "benign_accuracy": rate_interval(change.is_right.tolist(), contents),
            "perplexity": Interval(*(math.exp(one) for one in (mean.value, mean.low, mean.high))),
        }
        return [self._row(arm, "ordinary", metric, value, n) for metric, value in values.items()]

    def _row(self, arm: RefusalArm, kind: str, metric: str, value: Interval, n: int) -> Measurement:
        return Measurement(
            task=f"{NAME}/{kind}",
            source=self.source,
            target=self.lm.identity.name,
            target_site=arm.site,
            map=arm.map_method,
            condition=arm.condition,
            edit=arm.edit,
            positions=arm.positions,
            strength=arm.strength,
            split=self.split,
            metric=metric,
            value=value.value,
            ci_low=value.low if value.is_defined else None,
            ci_high=value.high if value.is_defined else None,
            n=n,
            seed=arm.seed,
        )


def _answer(text: EncodedText) -> Tensor:
    return torch.tensor(text.token_ids[text.n_prompt :])
