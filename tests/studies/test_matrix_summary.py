from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from tests.unit.evaluation.synthetic_run import measured

from isthmus.evaluation.measurements import Measurement
from isthmus.studies.matrix_summary import (
    BY_CHARACTER,
    BY_INDEX,
    NAME,
    Matrix,
    grid_of,
    labels_of,
    summary_of,
)

MODELS = ("a", "b", "c", "d")
TOKENIZERS = {"a": "bytes", "b": "bytes", "c": "pieces", "d": "pieces"}


def entry(
    name: str, condition: str, source: str, target: str, value: float | None, metric: str = "swap"
) -> Measurement:
    return measured(
        metric,
        value,
        condition=condition,
        task=f"{name}/backdoor",
        source=source,
        target=target,
        ci_low=None,
        ci_high=None,
    )


def native_of(target: str) -> float:
    return 0.4 + 0.1 * MODELS.index(target)


def matrix_with(shares: dict[tuple[str, str], float], by_index: float = 0.5) -> Matrix:
    """A matrix whose pairs have these shares of native, other pairs none."""
    rows = [entry(NAME, "native", t, t, native_of(t)) for t in MODELS]
    for (source, target), share in shares.items():
        value = share * native_of(target)
        rows.append(entry(BY_CHARACTER, "transferred", source, target, value))
        rows += [entry(BY_CHARACTER, "random", source, target, x * value) for x in (0.1, 0.3)]
        if TOKENIZERS[source] != TOKENIZERS[target]:
            rows.append(entry(BY_INDEX, "transferred", source, target, by_index * value))
    return Matrix("backdoor", MODELS, TOKENIZERS, tuple(rows))


def means(matrix: Matrix, condition: str = "transferred") -> dict[str, Measurement]:
    found = summary_of(matrix, 0).measurements
    return {
        m.task.split("/")[1]: m
        for m in found
        if m.metric == "swap_of_native" and m.condition == condition
    }


@pytest.mark.parametrize(("own", "low"), [(-0.2, None), (0.0, None), (0.02, -0.05)])
def test_no_share_is_taken_of_a_direction_that_does_nothing(own: float, low: float | None):
    shares = dict.fromkeys(permutations(MODELS, 2), 0.9)
    matrix = matrix_with(shares)
    rows = [
        replace(m, value=own, ci_low=low, ci_high=None if low is None else 0.1)
        if (m.condition, m.target) == ("native", "a")
        else m
        for m in matrix.measurements
    ]
    weak = replace(matrix, measurements=tuple(rows))
    found = means(weak)
    assert found["same_tokenizer"].value == pytest.approx(0.9)
    assert [found[group].n for group in ("same_tokenizer", "other_tokenizer")] == [3, 6]
    assert any("does nothing beyond chance" in note for note in summary_of(weak, 0).notes)


def test_shares_are_averaged_over_pairs_with_one_tokenizer_and_with_two():
    same, other = 0.9, 0.6
    shares = {
        pair: same if TOKENIZERS[pair[0]] == TOKENIZERS[pair[1]] else other
        for pair in permutations(MODELS, 2)
    }
    found = means(matrix_with(shares))
    assert found["same_tokenizer"].value == pytest.approx(same)
    assert found["other_tokenizer"].value == pytest.approx(other)
    assert found["other_tokenizer_by_index"].value == pytest.approx(other / 2)
    assert found["other_tokenizer_by_same"].value == pytest.approx(other / same)
    assert found["other_tokenizer_by_index_by_same"].value == pytest.approx(other / same / 2)
    assert [found[group].n for group in ("same_tokenizer", "other_tokenizer")] == [4, 8]
    # All pairs of a group are alike: there is nothing that resampling could change.
    assert found["other_tokenizer_by_same"].ci_low == pytest.approx(other / same)
    controls = means(matrix_with(shares), "random")
    assert controls["same_tokenizer"].value == pytest.approx(0.2 * same)


def test_intervals_are_those_of_drawn_models_with_their_pairs():
    rng = np.random.default_rng(5)
    shares = {pair: float(rng.uniform(0.2, 1.0)) for pair in permutations(MODELS, 2)}
    found = means(matrix_with(shares))["other_tokenizer"]
    draws = np.random.default_rng(0).integers(0, 4, size=(2000, 4))
    drawn_means = []
    for drawn in draws:
        names = [MODELS[i] for i in drawn]
        values = [
            shares[s, t] for s in names for t in names if s != t and TOKENIZERS[s] != TOKENIZERS[t]
        ]
        if values:
            drawn_means.append(np.mean(values))
    assert len(drawn_means) < len(draws)
    assert (found.ci_low, found.ci_high) == pytest.approx(np.quantile(drawn_means, (0.025, 0.975)))


def test_a_target_without_the_behaviour_counts_in_no_mean_and_is_named():
    shares = dict.fromkeys(permutations(MODELS, 2), 0.8)
    whole = matrix_with(shares)
    rows = [m for m in whole.measurements if (m.condition, m.target) != ("native", "b")]
    rows.append(entry(NAME, "native", "b", "b", None))
    lacking = Matrix("backdoor", MODELS, TOKENIZERS, tuple(rows))
    found = means(lacking)
    assert (found["same_tokenizer"].n, found["other_tokenizer"].n) == (3, 6)
    notes = summary_of(lacking, 0).notes
    assert [note for note in notes if "does not show" in note] == [
        "b does not show the behaviour: its column is undefined"
    ]


def test_rows_are_sources_from_the_top_and_native_is_on_the_diagonal():
    shares = {pair: 0.5 + 0.01 * i for i, pair in enumerate(permutations(MODELS, 2))}
    matrix = matrix_with(shares)
    grid = grid_of(matrix, "swap")
    assert grid.rows == ("d", "c", "b", "a")  # drawn from bottom to top
    assert grid.columns == MODELS
    assert all(grid.cells[t, t].condition == "native" for t in MODELS)
    for (source, target), share in shares.items():
        cell = grid.cells[source, target]
        assert (cell.source, cell.target) == (source, target)
        assert cell.value == pytest.approx(share * native_of(target))


def test_the_matrix_by_index_differs_only_between_tokenizers():
    shares = dict.fromkeys(permutations(MODELS, 2), 0.8)
    matrix = matrix_with(shares, by_index=0.25)
    plain, by_index = grid_of(matrix, "swap"), grid_of(matrix, "swap", by_index=True)
    for source, target in permutations(MODELS, 2):
        factor = 1 if TOKENIZERS[source] == TOKENIZERS[target] else 0.25
        value = plain.cells[source, target].value
        assert value is not None
        assert by_index.cells[source, target].value == pytest.approx(factor * value)


def test_models_of_one_tokenizer_have_one_matrix_and_no_comparison():
    rows = matrix_with({("a", "b"): 0.7, ("b", "a"): 0.9}).measurements
    one = Matrix("backdoor", ("a", "b"), TOKENIZERS, rows)
    assert set(means(one)) == {"same_tokenizer"}
    (svg,) = summary_of(one, 0).figures.values()
    assert "by index" not in svg


def test_labels_leave_out_the_ending_that_all_names_share_and_stay_different():
    assert labels_of(["organism:llama-large-a", "x/llama-a"]) == ["llama-large", "llama"]
    assert labels_of(["organism:llama-a", "organism:llama"]) == ["llama-a", "llama"]
    assert labels_of(["a", "b"]) == ["a", "b"]
    assert labels_of(["one/llama", "two/llama"]) == ["one/llama", "two/llama"]
