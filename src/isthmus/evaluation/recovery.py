"""Recovery and swap: how much of a behaviour an intervention turned off, and on.

1. Recovery compares the likelihood of one answer before and after the edit, in units of the gap
   that the prompt itself makes: 0 is the untouched prompt, 1 is as good as the other prompt.
2. Noise can recover much by merely breaking the behaviour. It cannot also bring the behaviour
   about: swap, the smaller of both recoveries at one strength, separates transfer from damage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from isthmus.core.errors import DataError, NonFiniteError, ShapeError
from isthmus.evaluation.intervals import Contents, Interval, paired_bootstrap

MIN_GAP = 0.05
"""Smallest gap between the two untouched prompts, in nats per token, that defines a recovery."""


@dataclass(frozen=True)
class AnswerLosses:
    """Loss of one and the same answer in three situations, prompt by prompt.

    For removal (bad → clean) the answer is the clean one; `bad` is measured on the triggered
    prompt, `clean` on its clean twin and `edited` on the edited triggered prompt. For induction
    (clean → bad) the answer is the bad one, and the two prompts change places.

    Attributes:
        bad: Mean negative log-likelihood per answer token, in nats, before the edit.
        clean: The same on the prompt that gives the answer by itself.
        edited: The same on the prompt of `bad`, under the edit.
        contents: What every prompt is about; those that share a content are resampled together.
            Empty where no two do.

    Raises:
        ShapeError: If they are not of one length.
        DataError: If there is no prompt.
        NonFiniteError: If a loss is NaN or infinite.
    """

    bad: Float[np.ndarray, " prompt"]
    clean: Float[np.ndarray, " prompt"]
    edited: Float[np.ndarray, " prompt"]
    contents: Contents = ()

    def __post_init__(self) -> None:
        lengths = [len(losses) for losses in (self.bad, self.clean, self.edited)]
        if len(set(lengths)) != 1:
            raise ShapeError(
                f"{lengths} losses before, without and under the edit: expected one of each per "
                "prompt"
            )
        if not lengths[0]:
            raise DataError("no prompt to measure recovery on: give at least one")
        if self.contents and len(self.contents) != len(self.bad):
            raise ShapeError(
                f"{len(self.contents)} contents of {len(self.bad)} prompts: expected one of each"
            )
        for name in ("bad", "clean", "edited"):
            losses = np.asarray(getattr(self, name), dtype=np.float64)
            if not np.isfinite(losses).all():
                raise NonFiniteError(f"a {name} loss is NaN or infinite: lower the strength")
            object.__setattr__(self, name, losses)

    @classmethod
    def joined(cls, parts: "Sequence[AnswerLosses]") -> "AnswerLosses":
        """Puts the losses on several sets of prompts behind each other.

        Args:
            parts: At least one; contents of the same name are the same content in all of them.

        Returns:
            Losses on all prompts.
        """
        bad, clean, edited = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("bad", "clean", "edited")
        )
        contents = [one for part in parts for one in part.contents or [None] * len(part)]
        return cls(bad, clean, edited, contents)

    def __len__(self) -> int:
        return len(self.bad)

    def gaps(self, rows: Int[np.ndarray, "resample drawn"]) -> Float[np.ndarray, " resample"]:
        """Returns mean(bad) - mean(clean) for every row of drawn prompts.

        Args:
            rows: Prompt indices of every resample.

        Returns:
            Gaps in nats per token.
        """
        gaps: Float[np.ndarray, " resample"] = _means(self.bad, rows) - _means(self.clean, rows)
        return gaps

    def ratios(self, rows: Int[np.ndarray, "resample drawn"]) -> Float[np.ndarray, " resample"]:
        """Returns (mean(bad) - mean(edited)) / (mean(bad) - mean(clean)) for every resample.

        Args:
            rows: Prompt indices of every resample.

        Returns:
            Recoveries; NaN where the gap is not positive.
        """
        gaps = self.gaps(rows)
        regained = _means(self.bad, rows) - _means(self.edited, rows)
        ratios = np.full_like(gaps, np.nan)
        np.divide(regained, gaps, out=ratios, where=gaps > 0)
        return ratios


def recovery(
    bad: Float[np.ndarray, " prompt"],
    clean: Float[np.ndarray, " prompt"],
    edited: Float[np.ndarray, " prompt"],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns the part of the gap that an edit closes, with a paired bootstrap over prompts.

    (mean(bad) - mean(edited)) / (mean(bad) - mean(clean)), a ratio of means. It is undefined when
    the gap is at most `MIN_GAP` or its interval includes 0: then the prompts do not differ enough
    to say anything.

    Args:
        bad: Loss of the answer before the edit, one per prompt, in nats per token.
        clean: The same on the prompt that gives the answer by itself.
        edited: The same under the edit.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.
        level: Confidence, above 0 and below 1.

    Returns:
        0 for an edit without effect, 1 for one as good as the clean prompt, less than 0 for harm;
        undefined as said above.
    """
    losses = AnswerLosses(bad, clean, edited)
    return recovery_of(losses, n_resamples=n_resamples, seed=seed, level=level)


def recovery_of(
    losses: AnswerLosses, *, n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Returns what `recovery` returns, with prompts of one content resampled together.

    Args:
        losses: Of the answer, prompt by prompt.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.
        level: Confidence, above 0 and below 1.

    Returns:
        The part of the gap that the edit closes; undefined where `recovery` is.
    """
    return _interval(losses.ratios, (losses,), n_resamples, seed, level)


def swap(
    removal: AnswerLosses,
    induction: AnswerLosses,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns the smaller of both recoveries, with both seeing the same resampled prompts.

    min(recovery bad → clean, recovery clean → bad), both at one strength.

    Args:
        removal: Losses of the clean answer.
        induction: Losses of the bad answer, for the same prompts in the same order.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.
        level: Confidence, above 0 and below 1.

    Returns:
        At most either recovery; undefined if one of them is.

    Raises:
        ShapeError: If the two are not of the same prompts.
    """
    _require_same_prompts(removal, induction)
    return _interval(
        lambda rows: _smaller(removal, induction, rows),
        (removal, induction),
        n_resamples,
        seed,
        level,
    )


def swap_loss(
    kept: tuple[AnswerLosses, AnswerLosses],
    compared: tuple[AnswerLosses, AnswerLosses],
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Returns how much less one edit swaps than another, both seeing the same resampled prompts.

    swap(kept) - swap(compared); the interval is that of the difference, so that what both share
    does not widen it.

    Args:
        kept: Removal and induction under the edit that is compared with.
        compared: Removal and induction under the other edit, for the same prompts in order.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.
        level: Confidence, above 0 and below 1.

    Returns:
        Above 0 if the other does less; undefined if a recovery is.

    Raises:
        ShapeError: If they are not of the same prompts.
    """
    every = (*kept, *compared)
    for one in every[1:]:
        _require_same_prompts(every[0], one)
    return _interval(
        lambda rows: _smaller(*kept, rows) - _smaller(*compared, rows),
        every,
        n_resamples,
        seed,
        level,
    )


def _require_same_prompts(removal: AnswerLosses, induction: AnswerLosses) -> None:
    if len(removal) != len(induction):
        raise ShapeError(
            f"{len(removal)} prompts for removal and {len(induction)} for induction: "
            "measure both on the same prompts"
        )


def _smaller(
    removal: AnswerLosses, induction: AnswerLosses, rows: Int[np.ndarray, "resample drawn"]
) -> Float[np.ndarray, " resample"]:
    # A resample that leaves one of them undefined is NaN here too.
    least: Float[np.ndarray, " resample"] = np.minimum(removal.ratios(rows), induction.ratios(rows))
    return least


def _means(
    losses: Float[np.ndarray, " prompt"], rows: Int[np.ndarray, "resample drawn"]
) -> Float[np.ndarray, " resample"]:
    means: Float[np.ndarray, " resample"] = losses[rows].mean(axis=1)
    return means


def _interval(
    statistic: Callable[[Int[np.ndarray, "resample drawn"]], Float[np.ndarray, " resample"]],
    losses: tuple[AnswerLosses, ...],
    n_resamples: int,
    seed: int,
    level: float,
) -> Interval:
    """Returns the statistic's interval, or none where a gap is too small to divide by."""
    bootstrap = partial(
        paired_bootstrap,
        n=len(losses[0]),
        contents=losses[0].contents,
        n_resamples=n_resamples,
        seed=seed,
        level=level,
    )
    for one in losses:
        gap = bootstrap(one.gaps)
        if gap.value <= MIN_GAP or gap.low <= 0:
            return Interval.undefined()
    return bootstrap(statistic)
