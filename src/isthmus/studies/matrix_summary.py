"""What a transfer matrix says: heat maps, and what arrives with and without a common tokenizer.

1. The share of native of a pair is its carried effect over the target's own.
2. Shares are averaged over pairs with one tokenizer and over pairs with two; the quotient of both
   means says what a second tokenizer costs.
3. Pairs share models, so models are resampled, not pairs: a resample draws as many models as there
   are, and a pair counts as often as its source times its target were drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from isthmus.evaluation.intervals import Interval, paired_bootstrap
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.report import short_name
from isthmus.evaluation.study_plots import NumberGrid, number_grids
from isthmus.studies.result import StudyResult

NAME = "transfer_matrix"
BY_CHARACTER, BY_INDEX = f"{NAME}/by_character", f"{NAME}/by_index"
"""Tasks of the entries: native ones, carried ones by pairing; the behaviour's name follows."""

_EFFECTS = {"recovery": "recovery_of_native", "swap": "swap_of_native"}
_GROUPS = ("same_tokenizer", "other_tokenizer", "other_tokenizer_by_index")


@dataclass(frozen=True)
class Matrix:
    """Every entry of a matrix.

    Attributes:
        task: The behaviour.
        models: Names, in the order of rows and columns.
        tokenizers: Hash of the tokenizer by model.
        measurements: Native and carried entries with their controls.
    """

    task: str
    models: tuple[str, ...]
    tokenizers: Mapping[str, str]
    measurements: tuple[Measurement, ...]

    def has_one_tokenizer(self, source: str, target: str) -> bool:
        """Says whether two models read text alike."""
        return self.tokenizers[source] == self.tokenizers[target]

    def native(self, target: str, metric: str) -> Measurement | None:
        """Returns what a target's own direction does there."""
        found = self._of(NAME, "native", metric, target, target)
        return found[0] if found else None

    def carried(
        self, source: str, target: str, metric: str, *, by_index: bool = False
    ) -> Measurement | None:
        """Returns what a source's direction does in a target.

        Args:
            source: Where it was learned.
            target: Where it was measured.
            metric: What was measured.
            by_index: Whether tokens were paired by index; with one tokenizer that is the same.

        Returns:
            The measurement, or None when there is none.
        """
        is_other = by_index and not self.has_one_tokenizer(source, target)
        name = BY_INDEX if is_other else BY_CHARACTER
        found = self._of(name, "transferred", metric, source, target)
        return found[0] if found else None

    def share(
        self, source: str, target: str, metric: str, condition: str, *, by_index: bool = False
    ) -> float:
        """Returns a pair's effect over the target's own; NaN where one of them is undefined.

        A share of a native effect that is not above 0 beyond chance would be any number.

        Args:
            source: Where the direction was learned.
            target: Where it was measured.
            metric: `recovery` or `swap`.
            condition: `transferred` or a control, of whose draws the mean is taken.
            by_index: Whether tokens were paired by index.

        Returns:
            The share.
        """
        name = BY_INDEX if by_index else BY_CHARACTER
        values = [m.value for m in self._of(name, condition, metric, source, target)]
        own = self.native(target, metric)
        if own is None or own.value is None or not values or None in values:
            return float("nan")
        if not _is_above_zero(own):
            return float("nan")
        return float(np.mean([value for value in values if value is not None])) / own.value

    def _of(
        self, name: str, condition: str, metric: str, source: str, target: str
    ) -> list[Measurement]:
        wanted = (f"{name}/{self.task}", condition, metric, source, target)
        return [
            m
            for m in self.measurements
            if (m.task, m.condition, m.metric, m.source, m.target) == wanted
        ]


def summary_of(matrix: Matrix, seed: int) -> StudyResult:
    """Returns a matrix with its means and heat maps.

    Args:
        matrix: Every entry.
        seed: Seed of the resamples.

    Returns:
        All measurements, means of shares by group, notes and two heat maps.
    """
    shares = _shares(matrix, seed)
    return StudyResult(
        f"{NAME}_{matrix.task}",
        (*matrix.measurements, *shares),
        _notes(matrix, shares),
        heat_maps(matrix),
    )


def heat_maps(matrix: Matrix) -> dict[str, str]:
    """Draws recovery and swap: rows are sources, columns targets, native on the diagonal.

    Args:
        matrix: Every entry.

    Returns:
        SVG text by title; below the matrix of tokens paired by character that of tokens paired by
        index, where tokenizers differ.
    """
    figures = {}
    has_two = len({matrix.tokenizers[one] for one in matrix.models}) > 1
    for metric in _EFFECTS:
        grids = [grid_of(matrix, metric)]
        if has_two:
            grids.append(grid_of(matrix, metric, by_index=True))
        title = f"{matrix.task}: {metric} by source (rows) and target (columns)"
        svg = number_grids(grids, f"matrix-{matrix.task}-{metric}", title)
        if svg is not None:
            figures[title] = svg
    return figures


def labels_of(models: Sequence[str]) -> list[str]:
    """Returns short names of models without the ending that all of them share.

    >>> labels_of(["organism:llama-backdoor", "organism:qwen2-backdoor"])
    ['llama', 'qwen2']

    Args:
        models: Names as they were given.

    Returns:
        One label per model, all different where the names are.
    """
    short = [short_name(one) for one in models]
    if len(set(short)) < len(short):
        return list(models)
    words = [one.split("-") for one in short]
    while min(map(len, words)) > 1 and len({one[-1] for one in words}) == 1:
        words = [one[:-1] for one in words]
    return ["-".join(one) for one in words]


def grid_of(matrix: Matrix, metric: str, *, by_index: bool = False) -> NumberGrid:
    """Arranges one metric: the first model in the topmost row, native effects on the diagonal.

    Args:
        matrix: Every entry.
        metric: `recovery` or `swap`.
        by_index: Whether tokens were paired by index.

    Returns:
        The grid; undefined entries are left out.
    """
    cells: dict[tuple[str, str], Measurement] = {}
    labels = dict(zip(matrix.models, labels_of(matrix.models), strict=True))
    for source in matrix.models:
        for target in matrix.models:
            if source == target:
                one = matrix.native(target, metric)
            else:
                one = matrix.carried(source, target, metric, by_index=by_index)
            if one is not None:
                cells[labels[source], labels[target]] = one
    how = "by index" if by_index else "where they end at one character"
    names = tuple(labels.values())
    title = f"{metric.capitalize()}, tokens paired {how}; rows: source, columns: target"
    return NumberGrid(title, names[::-1], names, cells)


def _shares(matrix: Matrix, seed: int) -> list[Measurement]:
    rows = []
    for condition in ("transferred", "random", "shuffled_map"):
        for metric, called in _EFFECTS.items():
            groups = {group: _group(matrix, group, metric, condition) for group in _GROUPS}
            found = {group: _mean(values, seed) for group, values in groups.items()}
            if condition == "transferred":
                for group in _GROUPS[1:]:
                    groups[f"{group}_by_same"] = groups[group]
                    found[f"{group}_by_same"] = _quotient(groups[group], groups[_GROUPS[0]], seed)
            for group, interval in found.items():
                n = int(np.isfinite(groups[group]).sum())
                if n and interval.is_defined:
                    task = f"{NAME}/{group}/{matrix.task}"
                    rows.append(_row(task, condition, called, interval, n, seed))
    return rows


def _group(
    matrix: Matrix, group: str, metric: str, condition: str
) -> Float[np.ndarray, "source target"]:
    """Returns shares of a group's pairs; NaN for every other pair and where undefined."""
    is_same, by_index = group == "same_tokenizer", group.endswith("by_index")
    shares = np.full((len(matrix.models),) * 2, np.nan)
    for i, source in enumerate(matrix.models):
        for j, target in enumerate(matrix.models):
            if i != j and matrix.has_one_tokenizer(source, target) == is_same:
                shares[i, j] = matrix.share(source, target, metric, condition, by_index=by_index)
    return shares


def _mean(shares: Float[np.ndarray, "source target"], seed: int) -> Interval:
    return paired_bootstrap(lambda drawn: _means(shares, drawn), len(shares), seed=seed)


def _quotient(
    shares: Float[np.ndarray, "source target"],
    others: Float[np.ndarray, "source target"],
    seed: int,
) -> Interval:
    def statistic(drawn: Int[np.ndarray, "resample drawn"]) -> Float[np.ndarray, " resample"]:
        quotients: Float[np.ndarray, " resample"] = _means(shares, drawn) / _means(others, drawn)
        return quotients

    return paired_bootstrap(statistic, len(shares), seed=seed)


def _means(
    shares: Float[np.ndarray, "source target"], drawn: Int[np.ndarray, "resample drawn"]
) -> Float[np.ndarray, " resample"]:
    """Returns the mean share of every resample of models; NaN where it holds no pair."""
    times = (drawn[:, :, None] == np.arange(len(shares))).sum(1).astype(float)
    weights = times[:, :, None] * times[:, None, :] * np.isfinite(shares)
    total = weights.sum((1, 2))
    sums = (weights * np.nan_to_num(shares)).sum((1, 2))
    means: Float[np.ndarray, " resample"] = np.full_like(total, np.nan)
    np.divide(sums, total, out=means, where=total > 0)
    return means


def _is_above_zero(own: Measurement) -> bool:
    lowest = own.value if own.ci_low is None else own.ci_low
    return lowest is not None and lowest > 0


def _row(task: str, condition: str, metric: str, found: Interval, n: int, seed: int) -> Measurement:
    return Measurement(
        task=task,
        condition=condition,
        split="test",
        metric=metric,
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        n=n,
        seed=seed,
    )


def _notes(matrix: Matrix, shares: list[Measurement]) -> tuple[str, ...]:
    notes = [
        "rows are sources, columns targets; on the diagonal is the target's own direction",
        (
            "with one tokenizer, index pairs the same tokens and special pieces besides: such an "
            "entry is measured once and stands in both matrices"
        ),
        "means of shares are over pairs; intervals resample models, because pairs share them",
    ]
    for one in shares:
        if one.condition == "transferred" and one.value is not None and one.ci_low is not None:
            group = (
                one.task.split("/")[1].replace("_by_same", " ÷ same tokenizer").replace("_", " ")
            )
            notes.append(
                f"{group}: {one.metric.replace('_', ' ')} {one.value:.3f} "
                f"({one.ci_low:.3f} to {one.ci_high:.3f}), {one.n} pairs"
            )
    for target in matrix.models:
        own = matrix.native(target, "swap")
        if own is None or own.value is None:
            name = short_name(target)
            notes.append(f"{name} does not show the behaviour: its column is undefined")
        elif not _is_above_zero(own):
            notes.append(
                f"{short_name(target)}: its own direction does nothing beyond chance, so that no "
                "share of it is counted"
            )
    return tuple(notes)
