import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from isthmus.core.errors import ConfigError, DataError
from isthmus.evaluation.layer_choice import (
    choose_layers,
    mean_ranks,
    rank_correlation,
    regret_of,
    shortlist_regret,
)

EFFECTS = np.array([[0.1, 0.9, 0.5, 0.4], [0.8, 0.2, 0.5, 0.4]])
NUMBERS = st.lists(st.integers(-5, 5), min_size=6, max_size=6)


def test_a_rule_that_ranks_as_the_effects_do_has_no_regret_in_that_resample():
    scores = 10 * EFFECTS[0] - 3
    assert rank_correlation(scores, EFFECTS) == pytest.approx([1, -0.8])
    assert regret_of(scores, EFFECTS) == pytest.approx([0, 0.6])


@settings(deadline=None, max_examples=40)
@given(scores=NUMBERS, effects=NUMBERS)
def test_the_rank_correlation_is_spearmans_with_ties(scores: list[int], effects: list[int]):
    ours = rank_correlation(np.array(scores, float), np.array([effects], float))[0]
    if len(set(scores)) == 1 or len(set(effects)) == 1:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(spearmanr(scores, effects).statistic)


def test_equal_scores_regret_what_a_random_choice_does():
    assert regret_of(np.zeros(4), EFFECTS) == pytest.approx(EFFECTS.max(1) - EFFECTS.mean(1))


def test_a_place_without_a_score_is_chosen_last():
    scores = np.array([0.2, np.nan, 0.1, np.nan])
    assert regret_of(scores, EFFECTS) == pytest.approx([0.8, 0])
    assert rank_correlation(scores, EFFECTS)[0] < 0
    told = dict(zip("abcd", ({"x": value} for value in scores), strict=True))
    assert choose_layers(told, "x", n=4) == ["a", "c", "b", "d"]


def test_validation_chooses_among_the_first_of_a_rule_and_looks_at_no_other():
    scores, promises = np.array([3.0, 1.0, 2.0, 0.0]), np.array([0.1, 5.0, 0.6, 9.0])
    assert shortlist_regret(scores, promises, EFFECTS, 1) == pytest.approx([0.8, 0])
    assert shortlist_regret(scores, promises, EFFECTS, 2) == pytest.approx([0.4, 0.3])
    assert shortlist_regret(scores, promises, EFFECTS, 3) == pytest.approx([0, 0.6])


def test_joined_scores_need_no_common_unit():
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1e6, 1e9, -1e9, 0.0])
    assert mean_ranks(a, b) == pytest.approx([0.5, 0.75, 0.5, 0.75])
    assert mean_ranks(a * 1e-9, b**3) == pytest.approx(mean_ranks(a, b))
    told = {i: {"a": a[i], "b": b[i]} for i in range(4)}
    assert choose_layers(told, ("a", "b"), n=2) == [1, 3]
    assert choose_layers(told, "b") == [1]


def test_what_cannot_choose_is_refused():
    with pytest.raises(DataError, match="no place"):
        choose_layers({}, "a")
    for rule in ("b", ("a", "b"), ()):
        with pytest.raises(ConfigError, match=r"to choose layers by: use some of a"):
            choose_layers({0: {"a": 1.0}}, rule)
    with pytest.raises(ConfigError, match="at least 1"):
        choose_layers({0: {"a": 1.0}}, "a", n=0)
