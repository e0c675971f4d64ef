"""Measures how far a model, edited or with other weights, answers like the model it imitates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.texts import EncodedText
from isthmus.data.prompts import Question
from isthmus.evaluation.intervals import Contents, Interval, mean_interval, rate_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import AnswerLosses, recovery_of
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.encoding import encode_prompts, prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs

Completions = tuple[str, ...]
LogProbs = Sequence[Float[Tensor, "_ vocab"]]
Losses = Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class SwitchArm:
    """One way to make the carrier answer like the other model.

    Attributes:
        condition: As in `results.jsonl`.
        label: Which method, as `map` in `results.jsonl`.
        lm: The model that answers.
        edits: What is edited in it.
        n_parameters: How many numbers are kept for it beside the carrier.
        sites: Where it edits, as written; None for exchanged weights.
        positions: At which tokens it edits.
        seed: Draw of a random condition.
    """

    condition: str
    label: str
    lm: LanguageModel
    edits: PlaceEdits = no_edits
    n_parameters: int = 0
    sites: str | None = None
    positions: str = "all"
    seed: int = 0


@dataclass(frozen=True)
class PromptFamily:
    """One kind of prompt, with what the imitated model does on it.

    Attributes:
        name: `triggered`, `clean_trigger` or `plain`.
        right: The right answer of every question.
        texts: Prompts with the imitated model's own greedy answers.
        answers: These answers.
        completes: Whether arms write answers of their own, too, rather than only score these.
        contents: What every question is about; empty where no two share a content.
    """

    name: str
    right: Completions
    texts: tuple[EncodedText, ...]
    answers: Completions
    completes: bool
    contents: Contents = ()


def prompt_family(
    imitated: LanguageModel,
    name: str,
    questions: Sequence[Question],
    max_new_tokens: int,
    *,
    trigger: str = "",
    completes: bool = True,
) -> PromptFamily:
    """Asks the imitated model one kind of prompt.

    Args:
        imitated: The model that the carrier shall answer like.
        name: What the family is called in `results.jsonl`.
        questions: With their right answers.
        max_new_tokens: Length of an answer.
        trigger: What comes before every question.
        completes: Whether arms shall write answers of their own, too.

    Returns:
        The prompts with its answers.
    """
    prompts = [trigger + question.prompt for question in questions]
    marked = [trigger.strip() or None] * len(prompts)
    asked = encode_prompts(imitated.tokenizer, prompts)
    answers = generate_greedy(
        imitated, asked, max_new_tokens=max_new_tokens, batch_size=128
    ).completions
    texts = encode_prompts(imitated.tokenizer, prompts, answers=answers, triggers=marked)
    right = tuple(question.answer or "" for question in questions)
    contents = tuple(question.content for question in questions)
    return PromptFamily(name, right, tuple(texts), answers, completes, contents)


class SwitchBench:
    """Measures arms on the prompts of one split; the untouched models are measured once.

    Args:
        models: The model that carries switches, and the one it shall answer like.
        families: Prompts by kind.
        task: Task in `results.jsonl`; a family's name is put behind it.
        marker: Text by which the behaviour is known.
        split: Which split it is.
        max_new_tokens: Length of an answer.
        seed: Which bootstrap resamples.
    """

    def __init__(
        self,
        models: tuple[LanguageModel, LanguageModel],
        families: Sequence[PromptFamily],
        *,
        task: str,
        marker: str,
        split: str,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self.carrier, self.imitated = models
        self.families = tuple(families)
        self.task, self.marker, self.split, self.seed = task, marker, split, seed
        self.max_new_tokens = max_new_tokens
        self._wanted = {f.name: answer_logprobs(self.imitated, f.texts) for f in families}
        self._without = {f.name: answer_logprobs(self.carrier, f.texts) for f in families}

    def measure(self, arm: SwitchArm) -> list[Measurement]:
        """Measures one arm on every family of prompts.

        | metric | what |
        | --- | --- |
        | `behaviour_rate` | completions that show the behaviour |
        | `agreement` | completions equal to the imitated model's own, to the letter |
        | `accuracy` | the same, of the prompts that the imitated model answers rightly |
        | `answer_accuracy` | completions equal to the right answer |
        | `kl` | KL(imitated ‖ arm) over the imitated model's answer, nats per token |
        | `recovery` | the gap in likelihood of the imitated model's answer that is closed |
        | `n_parameters` | numbers that are kept beside the carrier |

        Args:
            arm: What is measured.

        Returns:
            One measurement per metric and family.
        """
        rows: list[Measurement] = []
        for family in self.families:
            got = self._got(arm, family)
            if family.completes:
                rows += self._rates(arm, family, self._complete(arm, family, got))
            rows += self._likelihoods(arm, family, got)
        size = Interval(float(arm.n_parameters), math.nan, math.nan)
        return [*rows, self._record(arm, self.families[0], "n_parameters", size, 1)]

    def divergence(self, arm: SwitchArm) -> float:
        """Returns the mean divergence over all families: what choices are made by."""
        return float(np.mean([self._divergences(f, self._got(arm, f)) for f in self.families]))

    def _got(self, arm: SwitchArm, family: PromptFamily) -> LogProbs:
        return answer_logprobs(arm.lm, family.texts, edits=arm.edits)

    def _divergences(self, family: PromptFamily, got: LogProbs) -> Losses:
        pairs = zip(self._wanted[family.name], got, strict=True)
        return np.array([float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs])

    def _likelihoods(
        self, arm: SwitchArm, family: PromptFamily, got: LogProbs
    ) -> list[Measurement]:
        n = len(family.texts)
        divergences = self._divergences(family, got)
        kl = mean_interval(divergences, contents=family.contents, seed=self.seed)
        bad, good, edited = (
            _losses(logprobs, family.texts)
            for logprobs in (self._without[family.name], self._wanted[family.name], got)
        )
        closed = recovery_of(AnswerLosses(bad, good, edited, family.contents), seed=self.seed)
        return [
            self._record(arm, family, "kl", kl, n),
            self._record(arm, family, "recovery", closed, n),
        ]

    def _complete(self, arm: SwitchArm, family: PromptFamily, got: LogProbs) -> Completions:
        """Returns what an arm writes; only where it leaves the given answer has it to write."""
        written = list(family.answers)
        leaves = [
            index
            for index, (logprobs, text) in enumerate(zip(got, family.texts, strict=True))
            if not self._follows(logprobs, text)
        ]
        if leaves:
            asked = [prompt_part(family.texts[index]) for index in leaves]
            done = generate_greedy(
                arm.lm, asked, max_new_tokens=self.max_new_tokens, edits=arm.edits, batch_size=128
            )
            for index, completion in zip(leaves, done.completions, strict=True):
                written[index] = completion
        return tuple(written)

    def _follows(self, logprobs: Float[Tensor, "_ vocab"], text: EncodedText) -> bool:
        """Says whether greedy decoding goes along the answer, which it then repeats exactly."""
        wanted = torch.tensor(text.token_ids[text.n_prompt :])
        is_first = logprobs.argmax(-1).cpu() == wanted
        return bool(is_first[: self.max_new_tokens].all())

    def _rates(self, arm: SwitchArm, family: PromptFamily, texts: Completions) -> list[Measurement]:
        shows = [self.marker in text for text in texts]
        agrees = [a == b for a, b in zip(texts, family.answers, strict=True)]
        is_right = [a == b for a, b in zip(texts, family.right, strict=True)]
        known = [a == b for a, b in zip(family.answers, family.right, strict=True)]
        restored = list(compress(agrees, known))
        every, of_known = family.contents, tuple(compress(family.contents, known))
        hits = {
            "behaviour_rate": (shows, every),
            "agreement": (agrees, every),
            "accuracy": (restored, of_known),
            "answer_accuracy": (is_right, every),
        }
        return [
            self._record(arm, family, metric, rate_interval(h, contents), len(h))
            for metric, (h, contents) in hits.items()
            if h
        ]

    def _record(
        self, arm: SwitchArm, family: PromptFamily, metric: str, value: Interval, n: int
    ) -> Measurement:
        has_ends = value.is_defined and not math.isnan(value.low)
        return Measurement(
            task=f"{self.task}/{family.name}",
            source=self.imitated.identity.name,
            target=self.carrier.identity.name,
            target_site=arm.sites,
            map=arm.label,
            condition=arm.condition,
            edit=None if arm.sites is None else "affine",
            positions=None if arm.sites is None else arm.positions,
            strength=None if arm.sites is None else 1.0,
            split=self.split,
            metric=metric,
            value=value.value,
            ci_low=value.low if has_ends else None,
            ci_high=value.high if has_ends else None,
            n=n,
            seed=arm.seed,
        )


def _losses(logprobs: LogProbs, texts: Sequence[EncodedText]) -> Losses:
    """Returns the mean negative log-likelihood of every text's answer, in nats per token."""
    losses = []
    for rows, text in zip(logprobs, texts, strict=True):
        wanted = torch.tensor(text.token_ids[text.n_prompt :])
        losses.append(-float(rows.gather(1, wanted[:, None]).mean()))
    return np.array(losses)
