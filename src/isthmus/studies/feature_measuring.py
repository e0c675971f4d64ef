"""Turns what patched features did into measurements with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from isthmus.evaluation.intervals import Interval, paired_bootstrap, rate_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import AnswerLosses, recovery_of
from isthmus.studies.feature_bench import PatchEffect

NAME = "feature_transfer"
IN_SOURCE = "dictionary_for"
"""What follows in the task of numbers of the source itself, before the target's name.

The dictionary is trained on texts that both models read, so that every target has its own: numbers
of one feature in the source would otherwise not say of which.
"""


@dataclass(frozen=True)
class Described:
    """What was done to a model, as results name it.

    Attributes:
        condition: As in `results.jsonl`.
        edit: `reconstruction`, `patch_feature`, `add_feature`, `patch_state` or None.
        strength: Scale of the feature, if one was set.
        seed: Draw of a random condition.
    """

    condition: str
    edit: str | None = None
    strength: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class FeatureRecorder:
    """Writes measurements of one model on one split.

    Attributes:
        source: Name of the source model.
        target: Name of the model that is measured: the target, or the source itself.
        sites: Source site and the measured model's site, as written.
        positions: Which tokens.
        used_map: Method of the map, None when the source itself is measured.
        split: Split that is measured.
        task: What results call it: of the source itself, for which target its dictionary was made.
    """

    source: str
    target: str
    sites: tuple[str, str]
    positions: str
    used_map: str | None
    split: str
    task: str = NAME

    def record(
        self, what: Described, metric: str, value: Interval, n: int, ending: str = ""
    ) -> Measurement:
        """Returns one measurement; `ending` is put behind the task's name."""
        return Measurement(
            task=self.task + ending,
            source=self.source,
            target=self.target,
            source_site=self.sites[0],
            target_site=self.sites[1],
            map=self.used_map,
            condition=what.condition,
            edit=what.edit,
            positions=self.positions,
            strength=what.strength,
            split=self.split,
            metric=metric,
            value=value.value,
            ci_low=value.low if value.is_defined else None,
            ci_high=value.high if value.is_defined else None,
            n=n,
            seed=what.seed,
        )

    def effects(
        self, what: Described, done: PatchEffect, baseline: PatchEffect | None = None
    ) -> list[Measurement]:
        """Returns rate and recovery, and beside a baseline what goes beyond it.

        Args:
            what: What was done.
            done: What came of it.
            baseline: The mapped reconstruction alone; adds `feature_effect`, the difference of the
                recoveries, and under the task that ends in `/corrected` the rate among prompts
                that do not show the behaviour under the reconstruction.

        Returns:
            Two to four measurements.
        """
        n = len(done.shows)
        losses = done.losses
        recovered = recovery_of(losses)
        measured = [
            self.record(
                what, "behaviour_rate", rate_interval(done.shows.tolist(), losses.contents), n
            ),
            self.record(what, "recovery_induction", recovered, n),
        ]
        if baseline is None:
            return measured
        effect = effect_beyond(losses, baseline.losses)
        measured.append(self.record(what, "feature_effect", effect, n))
        is_clean = ~baseline.shows
        if n_clean := int(is_clean.sum()):
            asked = [one for one, kept in zip(losses.contents, is_clean, strict=False) if kept]
            rate = rate_interval(done.shows[is_clean].tolist(), asked)
            measured.append(self.record(what, "behaviour_rate", rate, n_clean, ending="/corrected"))
        return measured


def effect_beyond(losses: AnswerLosses, baseline: AnswerLosses) -> Interval:
    """Returns recovery minus the baseline's recovery, both on the same resampled prompts."""

    def difference(
        rows: Int[np.ndarray, "resample drawn"],
    ) -> Float[np.ndarray, " resample"]:
        beyond: Float[np.ndarray, " resample"] = losses.ratios(rows) - baseline.ratios(rows)
        return beyond

    return paired_bootstrap(difference, len(losses), contents=losses.contents)


def side_by_side(
    prompts: Sequence[str], shown: dict[str, PatchEffect], n: int
) -> tuple[dict[str, str], ...]:
    """Returns the first completions of every condition, for people."""
    return tuple(
        {"prompt": prompts[i], **{name: done.completions[i] for name, done in shown.items()}}
        for i in range(min(n, len(prompts)))
    )
