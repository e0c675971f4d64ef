"""What noise alone does to a backdoor: how much removes it, and how much sets it off.

1. The unit of a site is the median, over prompt tokens, of a token's root mean square; sizes are in
   these units, and N(0, 1) times size times unit is added to every coordinate.
2. Removal: noise at the trigger's tokens of prompts with the bad trigger. Does the behaviour stop,
   and do right answers come back, or is the model merely broken? Recovery, swap, and how the base
   model likes what is said, tell these apart.
3. Induction: noise at the last three tokens, or at the whole prompt, of prompts with the clean
   trigger and of prompts without any. How often does the behaviour show?
4. Every prompt is asked several times, each time under other noise; prompts are the sampling unit.

Source: arXiv 2503.04429, appendices B and H.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, NoEditError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import GivenSites, Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.data.organisms import Turn
from isthmus.evaluation.clustered import clustered_rate, per_prompt
from isthmus.evaluation.intervals import Interval, mean_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import AnswerLosses, recovery_of, swap
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.noise import GaussianNoise
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts, prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.scoring import answer_nll
from isthmus.studies.noise_figures import noise_figures
from isthmus.studies.result import StudyResult
from isthmus.studies.trigger_study import LayerScorer, TriggerStudy, open_study
from isthmus.workflows.arms import Arm
from isthmus.workflows.judging import judge_completions
from isthmus.workflows.twins import encode_twins

NAME = "noise_study"

PromptKind = Literal["triggered", "clean", "untriggered"]

SIZES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""How large the noise is, in units of the site."""

INDUCTION_POSITIONS = ("last:3", "prompt")
"""Where noise is added to prompts that do not bring the behaviour about."""

_APART = 1_000_003  # between seeds, so that draws of neighbouring seeds share no noise


def study_noise(
    model: str,
    *,
    base: str | None = None,
    sites: GivenSites = "all",
    sizes: tuple[float, ...] = SIZES,
    n_prompts: int = 32,
    n_draws: int = 10,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures how much Gaussian noise stops a backdoor, and how much sets it off.

    Tasks `noise_study/triggered`, `…/clean` and `…/untriggered` name the prompts; `strength` is the
    size in units of the site, and the notes give the units.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        base: Model without the backdoor, which judges completions; no perplexity when not given.
        sites: `all`, or sites such as `resid_post[3]`, `3`, `0.6`.
        sizes: Noise per coordinate in units of the site, each above 0.
        n_prompts: Questions, from the test split.
        n_draws: Noises per question.
        settings: Other fields of `RunConfig`: questions, triggers, batch size.
        seed: Seed of questions and noise.
        progress: Who shows progress.

    Returns:
        Rates, accuracies, recovery, swap and perplexity by site and size with intervals over
        prompts, figures, and one completion of each.

    Raises:
        ConfigError: If no size or no draw is asked for, or a size is not above 0.
        IsthmusError: If the task has no trigger, or model, sites or questions cannot be used.
    """
    if not sizes or min(sizes) <= 0 or n_draws < 1:
        raise ConfigError(f"sizes {sizes} in {n_draws} draws: expected sizes above 0, draws from 1")
    progress = progress or SilentProgress()
    few = {"n_train": 8, "n_validation": 4, "n_test": n_prompts}
    study = open_study(model, {**few, **(settings or {})}, seed, progress, needs_trigger=True)
    judge = None if base is None else load_language_model(base, device=study.config.device)
    places = study.lm.sites(sites)
    room = _Room.read(study, judge, places, n_draws)
    rows, shown = room.baselines(), []
    with progress.stage("add noise", len(places) * len(sizes)) as advance:
        for site in places:
            for size in sizes:
                removal, example = room.removal(site, size)
                rows += [*removal, *room.induction(site, size)]
                shown.append(example)
                advance(1)
    return StudyResult(
        NAME, tuple(rows), room.notes(base), noise_figures(rows, model), tuple(shown)
    )


def site_units(
    lm: LanguageModel, texts: Sequence[EncodedText], sites: Sequence[Site], batch_size: int
) -> dict[Site, float]:
    """Returns how large a coordinate usually is: the median token's root mean square, by site.

    The median, because a few tokens, often the first, can be many times as large as all others.

    Args:
        lm: The model.
        texts: Prompts.
        sites: Where.
        batch_size: Prompts per forward pass.

    Returns:
        Activation units, by site.
    """
    read = all_token_activations(lm, texts, sites, batch_size=batch_size)
    return {
        site: float(torch.cat(rows).double().pow(2).mean(1).sqrt().median())
        for site, rows in read.items()
    }


def fresh_noise(site: Site, d_model: int, size: float, positions: str, seed: int) -> PlaceEdits:
    """Returns what adds N(0, 1) · size to every coordinate, another noise in every batch.

    Args:
        site: Where.
        d_model: Width of the residual stream.
        size: Standard deviation, in activation units; 0 changes nothing.
        positions: Which tokens.
        seed: Which noises.

    Returns:
        A function that places the noise; it counts its calls.
    """
    # The expected length of a standard Gaussian is √(d - 1/2) to a few millionths.
    norm = size * math.sqrt(d_model - 0.5)
    numbers = count()

    def place(batch: TokenBatch) -> list[PlacedEdit]:
        noise = GaussianNoise(d_model, norm, seed + _APART * next(numbers))
        return Intervention({site: (noise,)}, parse_positions(positions)).place(batch)

    return place


@dataclass(frozen=True)
class _Prompts:
    """Prompts of one kind, without answers, with what is asked."""

    kind: PromptKind
    texts: list[EncodedText]
    turns: list[Turn]


class _Room:
    """Everything that the study asks, ready to be asked under noise."""

    def __init__(
        self,
        study: TriggerStudy,
        judge: LanguageModel | None,
        prompts: Mapping[PromptKind, _Prompts],
        scorers: tuple[LayerScorer, LayerScorer],
        units: Mapping[Site, float],
    ) -> None:
        self.study, self.judge, self.prompts = study, judge, prompts
        self.removed, self.induced = scorers
        self.units = units
        self.n_prompts = len(study.splits.test)
        self.contents = tuple(twin.content for twin in study.splits.test)
        self.n_draws = len(self.removed.texts) // self.n_prompts
        self.recorder = study.recorder("test")
        # One clean answer and one bad one under each of both triggers.
        self.gaps: tuple[tuple[Float[np.ndarray, " prompt"], ...], ...] = ()

    @classmethod
    def read(
        cls,
        study: TriggerStudy,
        judge: LanguageModel | None,
        sites: Sequence[Site],
        n_draws: int,
    ) -> "_Room":
        lm, config, twins = study.lm, study.config, study.splits.test
        encoded = encode_twins(lm, twins)
        plain = [twin.clean.removeprefix(config.clean_trigger) for twin in twins]
        asked: dict[PromptKind, tuple[list[EncodedText], list[str]]] = {
            "triggered": (encoded.triggered, [twin.triggered for twin in twins]),
            "clean": (encoded.clean, [twin.clean for twin in twins]),
            "untriggered": (encode_prompts(lm.tokenizer, plain), plain),
        }
        prompts = {
            kind: _Prompts(
                kind,
                [prompt_part(text) for text in texts],
                [
                    Turn(p, t.ordinary_answer, t.content)
                    for p, t in zip(written, twins, strict=True)
                ],
            )
            for kind, (texts, written) in asked.items()
        }
        layers = [site.layer for site in sites]
        removed, induced = (
            LayerScorer(lm, texts * n_draws, layers, config.batch_size)
            for texts in (encoded.triggered, encoded.clean_bad)
        )
        both = [*prompts["triggered"].texts, *prompts["clean"].texts]
        units = site_units(lm, both, sites, config.batch_size)
        room = cls(study, judge, prompts, (removed, induced), units)
        ends = (
            (encoded.triggered, encoded.clean),
            (encoded.clean_bad, encoded.triggered_bad),
        )
        room.gaps = tuple(
            tuple(answer_nll(lm, t, batch_size=config.batch_size).nll.double().numpy() for t in two)
            for two in ends
        )
        return room

    def baselines(self) -> list[Measurement]:
        """Returns what the model says without noise."""
        rows = []
        for kind, prompts in self.prompts.items():
            arm = Arm("clean" if kind == "clean" else "none", seed=self.study.config.seed)
            rows += self._said(kind, arm, self._ask(prompts, no_edits, 1))
        return rows

    def removal(self, site: Site, size: float) -> tuple[list[Measurement], dict[str, str]]:
        """Returns what noise at the trigger's tokens does, and one completion."""
        arm = self._arm(site, "trigger", size)
        said = self._ask(self.prompts["triggered"], self._noise(arm), self.n_draws)
        rows = [*self._said("triggered", arm, said), *self._likelihoods(arm)]
        example = {
            "site": str(site),
            "size in units": f"{size:g}",
            "size": f"{size * self.units[site]:.3g}",
            "prompt": self.prompts["triggered"].turns[0].prompt,
            "completion": said[0],
        }
        return rows, example

    def induction(self, site: Site, size: float) -> list[Measurement]:
        """Returns how often noise sets the behaviour off."""
        rows = []
        kinds: tuple[PromptKind, ...] = ("clean", "untriggered")
        for kind in kinds:
            for positions in INDUCTION_POSITIONS:
                arm = self._arm(site, positions, size)
                said = self._ask(self.prompts[kind], self._noise(arm), self.n_draws)
                rows += self._said(kind, arm, said)
        return rows

    def notes(self, base: str | None) -> tuple[str, ...]:
        """Returns the units, and what was not measured."""
        listed = "; ".join(f"{site} {unit:.3g}" for site, unit in self.units.items())
        units = (
            f"Units, in activation units per coordinate: {listed}. A strength times its unit is "
            "the standard deviation of the noise."
        )
        notes = [units, f"n counts prompts; each was asked under {self.n_draws} noises."]
        if base is None:
            notes.append("No base model was given: completions have no perplexity.")
        return tuple(notes)

    def _arm(self, site: Site, positions: str, size: float) -> Arm:
        return Arm("noise", site, positions, strength=size, seed=self.study.config.seed)

    def _noise(self, arm: Arm) -> PlaceEdits:
        if arm.site is None or arm.positions is None or arm.strength is None:
            raise ConfigError(f"the {arm.condition} arm has no place or size")
        size, d_model = arm.strength * self.units[arm.site], self.study.lm.d_model
        return fresh_noise(arm.site, d_model, size, arm.positions, arm.seed)

    def _ask(self, prompts: _Prompts, edits: PlaceEdits, n_draws: int) -> tuple[str, ...]:
        config, lm = self.study.config, self.study.lm
        asked, answers = zip(*((t.prompt, t.answer) for t in prompts.turns), strict=True)
        answered = encode_prompts(lm.tokenizer, asked, answers=answers)
        longest = max(len(text) - text.n_prompt for text in answered)
        said = generate_greedy(
            lm,
            prompts.texts * n_draws,
            max_new_tokens=config.max_new_tokens or longest,
            edits=edits,
            batch_size=4 * config.batch_size,
        )
        if edits is not no_edits and not said.n_edited:
            raise NoEditError(f"the noise chose no token of the {prompts.kind} prompts")
        return said.completions

    def _said(self, kind: PromptKind, arm: Arm, said: Sequence[str]) -> list[Measurement]:
        turns = self.prompts[kind].turns * (len(said) // self.n_prompts)
        outcomes = judge_completions(self.study.config, turns, said)
        names = ("behaviour_rate", "answer_accuracy")
        if kind != "triggered":
            names = ("false_trigger_rate", "benign_accuracy")
        hits = ([o.shows_behaviour for o in outcomes], [o.is_right for o in outcomes])
        values: dict[str, Interval] = {
            name: clustered_rate(hit, self.n_prompts, self.contents)
            for name, hit in zip(names, hits, strict=True)
        }
        if self.judge is not None and kind == "triggered":
            values["perplexity"] = self._perplexity(self.judge, said)
        return [self._measured(kind, arm, name, value) for name, value in values.items()]

    def _perplexity(self, judge: LanguageModel, said: Sequence[str]) -> Interval:
        """Returns how unlikely the base model finds what is said to the questions themselves."""
        asked = [turn.prompt for turn in self.prompts["untriggered"].turns]
        texts = encode_prompts(
            judge.tokenizer, asked * (len(said) // self.n_prompts), answers=list(said)
        )
        nll = answer_nll(judge, texts, batch_size=self.study.config.batch_size).nll
        losses = per_prompt(nll.double().numpy(), self.n_prompts)
        mean = mean_interval(losses, contents=self.contents, seed=self.study.config.seed)
        return Interval(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))

    def _likelihoods(self, arm: Arm) -> list[Measurement]:
        losses = []
        for scorer, (before, after) in zip((self.removed, self.induced), self.gaps, strict=True):
            edited = per_prompt(scorer.losses(self._noise(arm), arm.site), self.n_prompts)
            losses.append(AnswerLosses(before, after, edited, self.contents))
        removal, induction = losses
        seed = self.study.config.seed
        values = {
            "recovery": recovery_of(removal, seed=seed),
            "swap": swap(removal, induction, seed=seed),
        }
        return [self._measured("triggered", arm, name, value) for name, value in values.items()]

    def _measured(self, kind: PromptKind, arm: Arm, metric: str, value: Interval) -> Measurement:
        row = self.recorder.record(arm, metric, value, self.n_prompts)
        return replace(row, task=f"{NAME}/{kind}", edit=None if arm.site is None else "noise")
