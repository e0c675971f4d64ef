import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.carrying.strengths import (
    HIGHEST,
    LOWEST,
    N_STEPS,
    norm_matched_strength,
    relative_dose,
    strength_within_damage,
)
from isthmus.core.errors import ConfigError, FitError

KNOWN_TO = (HIGHEST / LOWEST) ** (1 / 2**N_STEPS)
"""Factor by which a strength that was found may miss the largest one."""


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(limit=st.floats(LOWEST, HIGHEST), power=st.floats(0.3, 3))
def test_the_strength_found_keeps_to_the_budget_and_hardly_misses_the_largest(limit, power):
    budget = limit**power
    found = strength_within_damage(lambda s: s**power, budget)
    assert found**power <= budget * (1 + 1e-9)
    assert limit / found <= KNOWN_TO * (1 + 1e-9)


def test_every_strength_is_tried_once_per_halving():
    tried = []
    strength_within_damage(lambda s: tried.append(s) or s, 1.0)
    assert len(set(tried)) == len(tried) == N_STEPS


def test_where_the_smallest_strength_does_too_much_the_place_is_refused():
    with pytest.raises(FitError, match=r"already strength 0\.05 does more than 0\.01"):
        strength_within_damage(lambda _: 1.0, 0.01)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_budget_that_allows_nothing_is_refused(budget):
    with pytest.raises(ConfigError, match="a positive budget"):
        strength_within_damage(lambda s: s, budget)


@settings(deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100), strength=st.floats(0.1, 5))
def test_a_matched_strength_moves_a_typical_state_by_the_same_share(seed, scale, strength):
    vectors, states = gaussian(3, 8, seed=seed), gaussian(50, 8, seed=seed + 1)
    dose = relative_dose(vectors, states, strength)
    others = (gaussian(2, 5, seed=seed + 2), scale * gaussian(40, 5, seed=seed + 3))
    matched = norm_matched_strength(dose, *others)
    assert relative_dose(*others, matched) == pytest.approx(dose)


def test_a_few_states_of_enormous_length_do_not_change_what_is_typical():
    vectors, states = gaussian(1, 8), gaussian(101, 8, seed=1)
    with_sinks = torch.cat([states, 1000 * states[:3]])
    assert relative_dose(vectors, with_sinks) == pytest.approx(
        relative_dose(vectors, states), rel=0.05
    )


def test_zero_states_and_zero_directions_have_no_dose():
    with pytest.raises(FitError, match="no typical norm"):
        relative_dose(gaussian(1, 4), torch.zeros(3, 4))
    with pytest.raises(FitError, match="no typical norm"):
        relative_dose(gaussian(1, 4), torch.zeros(0, 4))
    with pytest.raises(FitError, match="a direction of zero"):
        norm_matched_strength(0.1, torch.zeros(1, 4), gaussian(3, 4))
