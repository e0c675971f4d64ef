"""How far a judge agrees with people: accuracy and Cohen's kappa, with bootstrap intervals.

1. Both sides give one label per row; what belongs to one group (one prompt) is counted together.
2. A resample draws groups with replacement and adds up their confusion counts.
3. Accuracy and kappa are read from the sums. A row that the judge left `unjudged` is a
   disagreement: people never give that label.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from isthmus.core.errors import DataError, ShapeError
from isthmus.evaluation.intervals import Interval, paired_bootstrap


@dataclass(frozen=True)
class Agreement:
    """How far two sides agree, row by row.

    Attributes:
        accuracy: Share of rows with the same label on both sides.
        kappa: Cohen's kappa; undefined when both sides give one and the same label throughout.
        labels: Every label that occurs, in the order of the counts.
        counts: `counts[i][j]` rows that people call `labels[i]` and the judge `labels[j]`.
        n: How many rows there are.
        n_groups: How many groups the intervals are drawn from.
    """

    accuracy: Interval
    kappa: Interval
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    n: int
    n_groups: int


def measure_agreement(
    people: Sequence[str],
    judge: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Agreement:
    """Returns accuracy and kappa of a judge, with percentile bootstrap intervals over groups.

    kappa = (p_o - p_e) / (1 - p_e), with p_o the share of equal labels and p_e the share that two
    independent sides with the same label frequencies would have in common.

    Source: Cohen 1960, Educational and Psychological Measurement 20.

    Args:
        people: Labels that count as right, one per row, at least one.
        judge: Labels of the judge for the same rows.
        groups: What a row belongs to, such as its prompt; every row by itself when not given.
        n_resamples: How many resamples, at least 1.
        seed: Which resamples.
        level: Confidence, above 0 and below 1.

    Returns:
        The agreement with its confusion counts.

    Raises:
        ShapeError: If the sequences are not of one length.
        DataError: If there is no row.
    """
    lengths = {len(people), len(judge), len(people if groups is None else groups)}
    if len(lengths) > 1:
        raise ShapeError(f"labels of {sorted(lengths)} rows: expected one of each side per row")
    if not people:
        raise DataError("no labelled row to measure agreement on: give at least one")
    labels = tuple(sorted({*people, *judge}))
    by_group = _confusions(people, judge, labels, range(len(people)) if groups is None else groups)

    def accuracies(rows: Int[np.ndarray, "resample row"]) -> Float[np.ndarray, " resample"]:
        return _accuracies(_summed(by_group, rows))

    def kappas(rows: Int[np.ndarray, "resample row"]) -> Float[np.ndarray, " resample"]:
        return _kappas(_summed(by_group, rows))

    n_groups = len(by_group)
    accuracy, kappa = (
        paired_bootstrap(statistic, n_groups, n_resamples=n_resamples, seed=seed, level=level)
        for statistic in (accuracies, kappas)
    )
    counts = tuple(tuple(int(n) for n in row) for row in by_group.sum(axis=0))
    return Agreement(accuracy, kappa, labels, counts, len(people), n_groups)


def _confusions(
    people: Sequence[str],
    judge: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[Hashable],
) -> Int[np.ndarray, "group label label"]:
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(number), len(labels), len(labels)), dtype=np.int64)
    for group, right, given in zip(groups, people, judge, strict=True):
        counts[number[group], place[right], place[given]] += 1
    return counts


def _summed(
    by_group: Int[np.ndarray, "group label label"], rows: Int[np.ndarray, "resample row"]
) -> Float[np.ndarray, "resample label label"]:
    n_labels = by_group.shape[1]
    sums = np.empty((len(rows), n_labels, n_labels))
    # Cell by cell, which holds no more than one number per drawn index.
    for i, j in np.ndindex(n_labels, n_labels):
        sums[:, i, j] = by_group[:, i, j][rows].sum(axis=1)
    return sums


def _accuracies(
    counts: Float[np.ndarray, "resample label label"],
) -> Float[np.ndarray, " resample"]:
    shares: Float[np.ndarray, " resample"] = np.trace(counts, axis1=1, axis2=2) / counts.sum(
        axis=(1, 2)
    )
    return shares


def _kappas(counts: Float[np.ndarray, "resample label label"]) -> Float[np.ndarray, " resample"]:
    totals = counts.sum(axis=(1, 2))
    expected = (counts.sum(axis=1) * counts.sum(axis=2)).sum(axis=1) / totals**2
    kappas = np.full(len(counts), np.nan)
    # Where one label is all there is, chance agrees in full and kappa has no meaning.
    np.divide(_accuracies(counts) - expected, 1 - expected, out=kappas, where=expected < 1)
    return kappas
