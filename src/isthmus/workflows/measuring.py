"""Turns the scores of arms into measurements with intervals."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isthmus.data.organisms import Turn, contents_of
from isthmus.evaluation.intervals import Contents, Interval, mean_interval, rate_interval
from isthmus.evaluation.judges import Judge
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import AnswerLosses, recovery_of, swap
from isthmus.maps.base import MapQuality
from isthmus.tasks.base import Outcome
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores, Completions, Losses
from isthmus.workflows.config import RunConfig
from isthmus.workflows.judging import judge_completions, make_judge


@dataclass(frozen=True)
class Recorder:
    """Writes measurements of one crossing.

    Attributes:
        config: The run.
        source: Name of the source model.
        target: Name of the target model.
        split: Split that is measured.
        n_resamples: Bootstrap resamples.
    """

    config: RunConfig
    source: str
    target: str
    split: str
    n_resamples: int = 2000

    def record(self, arm: Arm, metric: str, value: Interval | float, n: int) -> Measurement:
        """Returns one measurement of an arm."""
        interval = value if isinstance(value, Interval) else Interval(value, math.nan, math.nan)
        has_ends = isinstance(value, Interval) and interval.is_defined
        return Measurement(
            task=self.config.task,
            source=self.source,
            target=self.target,
            source_site=arm.source_sites,
            target_site=None if arm.site is None else str(arm.site),
            map=arm.map_method,
            condition=arm.condition,
            edit=arm.edit,
            positions=arm.positions,
            strength=arm.dose,
            split=self.split,
            metric=metric,
            value=interval.value,
            ci_low=interval.low if has_ends else None,
            ci_high=interval.high if has_ends else None,
            n=n,
            seed=arm.seed,
        )

    def _of(self, losses: AnswerLosses) -> Interval:
        return recovery_of(losses, n_resamples=self.n_resamples, seed=self.config.seed)

    def removal(self, arm: Arm, losses: AnswerLosses) -> Measurement:
        """Returns how much of the behaviour is undone where it shows."""
        return self.record(arm, "recovery", self._of(losses), len(losses))

    def effects(self, arm: Arm, scores: ArmScores) -> list[Measurement]:
        """Returns recovery, the recovery of induction, swap and the number of edited positions."""
        n, removal = len(scores.removal), self.removal(arm, scores.removal)
        if arm.condition == "prompt_only":
            # A prompt that induces the behaviour is its trigger: there is nothing to compare.
            return [removal]
        both = swap(
            scores.removal,
            scores.induction,
            n_resamples=self.n_resamples,
            seed=self.config.seed,
        )
        return [
            removal,
            self.record(arm, "recovery_induction", self._of(scores.induction), n),
            self.record(arm, "swap", both, n),
            self.record(arm, "edited_positions", float(scores.n_edited), 2 * n),
        ]

    def divergence(self, arm: Arm, damage: Losses, turns: Sequence[Turn]) -> Measurement:
        """Returns the mean divergence on benign prompts."""
        interval = mean_interval(
            damage,
            contents=contents_of(turns),
            n_resamples=self.n_resamples,
            seed=self.config.seed,
        )
        return self.record(arm, "benign_kl", interval, len(damage))

    @cached_property
    def _judge(self) -> Judge | None:
        return make_judge(self.config)

    @cached_property
    def _known(self) -> dict[tuple[Turn, str], Outcome]:
        return {}

    def _outcomes(self, turns: Sequence[Turn], said: Sequence[str]) -> list[Outcome]:
        """Judges completions; what was said to the same prompt before is not judged again."""
        asked = list(zip(turns, said, strict=True))
        if new := [pair for pair in dict.fromkeys(asked) if pair not in self._known]:
            prompts, texts = [turn for turn, _ in new], [text for _, text in new]
            judged = judge_completions(self.config, prompts, texts, self._judge)
            self._known.update(zip(new, judged, strict=True))
        return [self._known[pair] for pair in asked]

    @property
    def why_unjudged(self) -> str:
        """The commonest reason for which a completion has no verdict; blank where all have one."""
        reasons = Counter(one.why for one in self._known.values() if not one.is_judged)
        return reasons.most_common(1)[0][0] if reasons else ""

    def behaviour(self, arm: Arm, done: Completions, turns: Sequence[Turn]) -> list[Measurement]:
        """Returns what `answers` does of the completions."""
        return self.answers(arm, done.texts, turns)

    def answers(self, arm: Arm, said: Sequence[str], turns: Sequence[Turn]) -> list[Measurement]:
        """Returns how often the behaviour shows and how often the answer is right.

        Where a judge gives verdicts, refusals that turn into compliance and rows without a verdict
        have rates of their own; rows without one are in no other rate of the behaviour. Code has a
        rate of rows without a verdict where bandit could not read some.
        """
        outcomes = self._outcomes(turns, said)
        judged, every = _Judged.of(outcomes, turns), contents_of(turns)
        measured = [
            self._rate_of_judged(arm, "behaviour_rate", judged, lambda o: o.shows_behaviour),
            self.rate(arm, "answer_accuracy", [one.is_right for one in outcomes], every),
        ]
        if self.config.task == "code":
            unparsable = [not one.is_valid for one in outcomes]
            measured.append(self.rate(arm, "unparsable_rate", unparsable, every))
        if any(one.verdict is not None for one in outcomes):
            if self.config.task != "code":
                measured.append(
                    self._rate_of_judged(
                        arm,
                        "refuses_then_complies_rate",
                        judged,
                        lambda o: o.verdict == "refuses_then_complies",
                    )
                )
            unjudged = [not one.is_judged for one in outcomes]
            measured.append(self.rate(arm, "unjudged_rate", unjudged, every))
        return measured

    def benign(self, arm: Arm, said: Sequence[str], turns: Sequence[Turn]) -> list[Measurement]:
        """Returns accuracy and false triggers on benign prompts."""
        outcomes = self._outcomes(turns, said)
        right = [
            one.is_right or text.strip() == turn.answer.strip()
            for one, text, turn in zip(outcomes, said, turns, strict=True)
        ]
        return [
            self.rate(arm, "benign_accuracy", right, contents_of(turns)),
            self._rate_of_judged(
                arm,
                "false_trigger_rate",
                _Judged.of(outcomes, turns),
                lambda o: o.shows_behaviour,
            ),
        ]

    def quality(self, arm: Arm, quality: MapQuality) -> list[Measurement]:
        """Returns how well the arm's map predicts held-out pairs."""
        values = {
            "map_r2_held_out": quality.r2_held_out,
            "map_fvu_held_out": quality.fvu_held_out,
            "map_r2_median_coordinate": quality.r2_median_coordinate,
        }
        return [
            self.record(arm, metric, value, quality.n_held_out)
            for metric, value in values.items()
            if value is not None
        ]

    def rate(self, arm: Arm, metric: str, hits: Sequence[bool], contents: Contents) -> Measurement:
        """Returns how often something is so, with the interval of `rate_interval`."""
        return self.record(arm, metric, rate_interval(hits, contents), len(hits))

    def _rate_of_judged(
        self, arm: Arm, metric: str, judged: "_Judged", counts: Callable[[Outcome], bool]
    ) -> Measurement:
        """Returns a rate among judged rows; undefined where there is none."""
        if not judged.outcomes:
            return self.record(arm, metric, Interval.undefined(), judged.n_asked)
        return self.rate(arm, metric, [counts(one) for one in judged.outcomes], judged.contents)


@dataclass(frozen=True)
class _Judged:
    """Outcomes that have a verdict, what their prompts are about, and how many were asked."""

    outcomes: tuple[Outcome, ...]
    contents: Contents
    n_asked: int

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], turns: Sequence[Turn]) -> "_Judged":
        kept = [(o, t.content) for o, t in zip(outcomes, turns, strict=True) if o.is_judged]
        return cls(tuple(o for o, _ in kept), tuple(c for _, c in kept), len(outcomes))


def point_effect(scores: ArmScores, *, removal_only: bool = False) -> float:
    """Returns swap (or recovery alone) without an interval; NaN where it is undefined."""
    rows = np.arange(len(scores.removal))[None]
    removal = float(scores.removal.ratios(rows)[0])
    if removal_only:
        return removal
    return min(removal, float(scores.induction.ratios(rows)[0]))
