"""Examines a target whose states are replaced, or steered, on one set of texts.

1. Teacher-forced: divergence from the untouched target on its own completions, and the loss of
   these and of the right answers.
2. Free-running: greedy completions, compared with the target's own, with the source's and with
   those under mean ablation; how likely a judge model finds them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from isthmus.core.texts import EncodedText
from isthmus.evaluation.embedding_similarity import embedding_similarity
from isthmus.evaluation.intervals import (
    Interval,
    mean_interval,
    paired_bootstrap,
    wilson_interval,
)
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.text_overlap import TextOverlap, text_overlap
from isthmus.models.batching import PlaceEdits, ignore, no_edits
from isthmus.models.changes import benign_changes
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_nll
from isthmus.models.stepwise import generate_stepwise
from isthmus.studies.text_sets import OwnCompletions, TextSet
from isthmus.workflows.arms import Arm
from isthmus.workflows.measuring import Recorder

TASK = "mapper_validation"

Losses = Float[np.ndarray, " text"]


@dataclass(frozen=True)
class Treatment:
    """What is done to the target, as results name it and as batches need it.

    Attributes:
        arm: Condition, site, positions, edit and map.
        place: What to edit in a batch.
        follows_text: Whether the edit depends on what is written, and is placed anew per token.
        is_causal: Whether it sets the state of a position by the tokens up to it alone.
        writes: Whether completions are wanted.
    """

    arm: Arm
    place: PlaceEdits = no_edits
    follows_text: bool = False
    is_causal: bool = False
    writes: bool = True


@dataclass(frozen=True)
class Examined:
    """What one treatment did on one set.

    Attributes:
        kl: Divergence from the untouched target on its own completions, nats per token.
        own_nll: Loss of the target's own completions, nats per token.
        right_nll: Loss of the answers that the set should bring, nats per token.
        completions: What the target wrote, for the first prompts, or nothing.
        judged_nll: How unlikely the judge finds each completion, nats per token.
        n_edited: Edited positions over the own completions.
    """

    kl: Losses
    own_nll: Losses
    right_nll: Losses
    completions: tuple[str, ...]
    judged_nll: Float[np.ndarray, " completed"]
    n_edited: int


@dataclass(frozen=True)
class Examiner:
    """Examines treatments of one target.

    Attributes:
        lm: The target.
        judge: The untouched model whose perplexity stands for coherence.
        recorder: Writes test measurements.
        max_new_tokens: Length of completions.
        n_completed: How many prompts of a set are answered under treatments that follow the text.
        embedder: Folder of a sentence embedder, if similarities are wanted.
    """

    lm: LanguageModel
    judge: LanguageModel
    recorder: Recorder
    max_new_tokens: int
    n_completed: int
    embedder: Path | None = None

    def examine(
        self,
        treatments: Sequence[Treatment],
        texts: TextSet,
        own: OwnCompletions,
        advance: Callable[[int], None] = ignore,
    ) -> list[Examined]:
        """Scores likelihoods and lets the target answer under every treatment.

        Args:
            treatments: What is done, one at a time.
            texts: The set.
            own: What both models write untouched.
            advance: Told after each treatment.

        Returns:
            Numbers in the order of the prompts, treatment by treatment.
        """
        size = self.recorder.config.batch_size
        own_texts = texts.encoded(self.lm, own.target)
        right_texts = texts.encoded(self.lm, texts.answers)
        places = [one.place for one in treatments]
        moved = benign_changes(self.lm, own_texts, places, batch_size=size)
        right = benign_changes(self.lm, right_texts, places, batch_size=size)
        found = []
        for treatment, change, answered in zip(treatments, moved, right, strict=True):
            is_untouched = treatment.place is no_edits
            written = own.target if is_untouched else self._written(treatment, texts, own_texts)
            found.append(
                Examined(
                    _numbers(change.divergence),
                    _numbers(change.nll),
                    _numbers(answered.nll),
                    written,
                    self._judged(written, texts),
                    change.n_edited,
                )
            )
            advance(1)
        return found

    def _judged(self, written: Sequence[str], texts: TextSet) -> Losses:
        if not written:
            return np.zeros(0)
        judged = encode_prompts(
            self.judge.tokenizer, texts.prompts[: len(written)], answers=written
        )
        size = self.recorder.config.batch_size
        return _numbers(answer_nll(self.judge, judged, batch_size=size).nll)

    def _written(
        self, treatment: Treatment, texts: TextSet, own_texts: Sequence[EncodedText]
    ) -> tuple[str, ...]:
        if not treatment.writes:
            return ()
        prompts = texts.encoded(self.lm)
        size = self.recorder.config.batch_size
        if treatment.follows_text:
            guesses = [text.token_ids[text.n_prompt : -1] for text in own_texts[: self.n_completed]]
            return generate_stepwise(
                self.lm,
                prompts[: self.n_completed],
                drafts=guesses if treatment.is_causal else None,
                max_new_tokens=self.max_new_tokens,
                edits=treatment.place,
                batch_size=size,
            )
        return generate_greedy(
            self.lm,
            prompts,
            max_new_tokens=self.max_new_tokens,
            edits=treatment.place,
            batch_size=size,
        ).completions

    def measurements(
        self,
        treatment: Treatment,
        done: Examined,
        texts: TextSet,
        own: OwnCompletions,
        ablated: Examined | None = None,
    ) -> list[Measurement]:
        """Writes what was examined as measurements; the set is part of their task.

        Args:
            treatment: What was done.
            done: What came of it.
            texts: The set.
            own: What both models write untouched.
            ablated: What came of mean ablation there, for `mapped_beats_ablated`.

        Returns:
            One measurement per metric.
        """
        arm = treatment.arm
        found = [
            self._mean(arm, "kl", done.kl),
            self._mean(arm, "cross_entropy", done.own_nll),
        ]
        if done.completions:
            found += [
                self._coherence(arm, done),
                *self._answers(arm, done.completions, texts),
                *self._likeness(arm, done.completions, own, ablated),
            ]
        if done.n_edited:
            n = len(done.own_nll)
            found.append(self.recorder.record(arm, "edited_positions", float(done.n_edited), n))
        right = replace(
            self._mean(arm, "cross_entropy", done.right_nll),
            task=f"{TASK}/{texts.name}/right_answer",
        )
        return [*(replace(m, task=f"{TASK}/{texts.name}") for m in found), right]

    def _mean(self, arm: Arm, metric: str, values: Losses) -> Measurement:
        interval = mean_interval(
            values, n_resamples=self.recorder.n_resamples, seed=self.recorder.config.seed
        )
        return self.recorder.record(arm, metric, interval, len(values))

    def _share(self, arm: Arm, metric: str, hits: Sequence[bool]) -> Measurement:
        if not hits:
            return replace(self.recorder.record(arm, metric, math.nan, 1), n=None)
        interval = wilson_interval(sum(hits), len(hits))
        return self.recorder.record(arm, metric, interval, len(hits))

    def _coherence(self, arm: Arm, done: Examined) -> Measurement:
        nll = done.judged_nll
        interval: Interval = paired_bootstrap(
            lambda rows: np.exp(nll[rows].mean(axis=1)),
            len(nll),
            n_resamples=self.recorder.n_resamples,
            seed=self.recorder.config.seed,
        )
        return self.recorder.record(arm, "perplexity", interval, len(nll))

    def _answers(self, arm: Arm, written: Sequence[str], texts: TextSet) -> list[Measurement]:
        shows = [self.recorder.config.marker in one for one in written]
        right = [
            one == answer.strip() for one, answer in zip(written, texts.clean_answers, strict=False)
        ]
        is_bad = texts.name == "bad_trigger"
        return [
            self._share(arm, "behaviour_rate" if is_bad else "false_trigger_rate", shows),
            self._share(arm, "answer_accuracy" if is_bad else "benign_accuracy", right),
        ]

    def _likeness(
        self, arm: Arm, written: Sequence[str], own: OwnCompletions, ablated: Examined | None
    ) -> list[Measurement]:
        to_target = overlaps(written, own.target)
        found = [
            self._mean(arm, f"rouge_{kind}", np.array([getattr(o, f"rouge_{kind}") for o in rows]))
            for kind, rows in (("1", to_target), ("2", to_target), ("l", to_target))
        ]
        if self.embedder is not None:
            alike = embedding_similarity(self.embedder, written, own.target[: len(written)])
            found.append(self._mean(arm, "embedding_similarity", alike))
        if arm.condition == "none":
            return found
        to_source = overlaps(written, own.source)
        sides = [
            ours.rouge_l > theirs.rouge_l
            for ours, theirs in zip(to_target, to_source, strict=True)
            if ours.rouge_l != theirs.rouge_l
        ]
        found.append(self._share(arm, "target_beats_source", sides))
        if ablated is not None:
            others = overlaps(ablated.completions, own.target)
            wins = [a.rouge_l > b.rouge_l for a, b in zip(to_target, others, strict=False)]
            found.append(self._share(arm, "mapped_beats_ablated", wins))
        return found


def overlaps(written: Sequence[str], references: Sequence[str]) -> list[TextOverlap]:
    """Compares completions with the first references, pair by pair."""
    return [text_overlap(a, b) for a, b in zip(written, references, strict=False)]


def _numbers(values: Float[Tensor, " text"]) -> Losses:
    return values.double().numpy()
