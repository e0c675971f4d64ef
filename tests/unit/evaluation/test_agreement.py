import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix

from isthmus.core.errors import DataError, ShapeError
from isthmus.evaluation.agreement import measure_agreement

LABELS = ("complies", "refuses", "refuses_then_complies", "unjudged")
pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1)


@settings(deadline=None, max_examples=80)
@given(pairs)
def test_accuracy_kappa_and_counts_are_those_of_scikit_learn(rows: list[tuple[str, str]]) -> None:
    people, judge = map(list, zip(*rows, strict=True))
    found = measure_agreement(people, judge, n_resamples=20)
    assert found.accuracy.value == pytest.approx(accuracy_score(people, judge))
    if len(found.labels) > 1:
        assert np.array_equal(found.counts, confusion_matrix(people, judge, labels=found.labels))
        assert found.kappa.value == pytest.approx(cohen_kappa_score(people, judge), abs=1e-12)


def test_one_label_throughout_is_full_agreement_without_a_kappa() -> None:
    found = measure_agreement(["refuses"] * 3, ["refuses"] * 3)
    assert found.accuracy.value == 1
    assert found.counts == ((3,),)
    assert math.isnan(found.kappa.value)


def test_the_interval_is_that_of_resampling_prompts_by_hand() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 3)
    people = rng.choice(["complies", "refuses"], size=120)
    judge = np.where(rng.random(120) < 0.8, people, "complies")
    found = measure_agreement(people.tolist(), judge.tolist(), groups.tolist(), seed=3)
    drawn = np.random.default_rng(3).integers(0, 40, size=(2000, 40))
    by_hand = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for prompts in drawn[:200]:
            rows = np.concatenate([np.flatnonzero(groups == one) for one in prompts])
            by_hand.append(cohen_kappa_score(people[rows], judge[rows]))
    few = measure_agreement(
        people.tolist(), judge.tolist(), groups.tolist(), seed=3, n_resamples=200
    )
    assert (few.kappa.low, few.kappa.high) == pytest.approx(np.quantile(by_hand, (0.025, 0.975)))
    assert found.n_groups == 40
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high


def test_rows_of_one_prompt_make_the_interval_wider() -> None:
    people = ["refuses", "complies"] * 30
    judge = [label if i % 12 else "unjudged" for i, label in enumerate(people)]
    alone = measure_agreement(people * 10, judge * 10)
    together = measure_agreement(people * 10, judge * 10, list(range(60)) * 10)
    width = alone.accuracy.high - alone.accuracy.low
    assert together.accuracy.high - together.accuracy.low > 2 * width
    assert together.accuracy.value == alone.accuracy.value


def test_an_unjudged_row_is_a_disagreement() -> None:
    found = measure_agreement(["refuses", "complies"], ["unjudged", "complies"])
    assert found.accuracy.value == 0.5
    assert found.labels == ("complies", "refuses", "unjudged")
    assert found.counts == ((1, 0, 0), (0, 0, 1), (0, 0, 0))


def test_labels_of_other_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[1, 2\] rows"):
        measure_agreement(["a", "b"], ["a"])
    with pytest.raises(ShapeError):
        measure_agreement(["a", "b"], ["a", "b"], [1])
    with pytest.raises(DataError):
        measure_agreement([], [])
