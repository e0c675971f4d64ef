from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ConfigError, ShapeError
from isthmus.evaluation.racing import (
    MIN_QUESTIONS,
    Turning,
    is_excluded,
    mean_bounds,
    resampled_effects,
)
from isthmus.evaluation.recovery import AnswerLosses, swap


def losses(edited: np.ndarray, n: int = 24, seed: int = 0) -> Turning:
    rng = np.random.default_rng(seed)
    every = AnswerLosses(3 + rng.normal(0, 0.3, n), 1 + rng.normal(0, 0.1, n), edited)
    return Turning(every, np.ones(n, dtype=bool))


def candidates(shifts: list[float], n: int = 24, noise: float = 0.2) -> list[Turning]:
    rng = np.random.default_rng(1)
    return [losses(1 + shift + rng.normal(0, noise, n), n) for shift in shifts]


def test_where_every_answer_turns_an_effect_is_the_swap_that_is_reported():
    removal, induction = candidates([0.2, 0.5])
    found = resampled_effects([removal], [induction])
    reported = swap(removal.losses, induction.losses, n_resamples=10).value
    assert found.values[0] == pytest.approx(reported)
    assert found.values[0] == pytest.approx(min(removal.effect, induction.effect))
    alone = resampled_effects([removal], None)
    assert alone.values[0] > found.values[0]


def test_answers_that_have_moved_and_not_turned_are_no_effect():
    (moved,) = candidates([0.2])
    half = replace(moved, turned=np.arange(24) % 2 == 0)
    found = resampled_effects([moved, half, replace(moved, turned=~moved.turned)], None)
    assert found.values[1] == pytest.approx(found.values[0] / 2) == pytest.approx(half.effect)
    assert found.values[2] == 0
    assert is_excluded(found, 0, 0.995).tolist() == [False, True, True]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 2), min_size=2, max_size=6), st.integers(0, 5))
def test_what_is_best_on_every_question_is_never_excluded(shifts: list[float], leader: int):
    every = candidates(shifts)
    best = losses(np.min([one.losses.edited for one in every], axis=0) - 0.01)
    effects = resampled_effects([*every, best], None)
    excluded = is_excluded(effects, leader % len(every), 0.9)
    assert not excluded[-1]
    assert not excluded[leader % len(every)]


def test_what_is_clearly_worse_is_excluded_and_a_twin_of_the_leader_is_not():
    good, bad = candidates([0.0, 1.5])
    effects = resampled_effects([good, bad, good], None)
    assert is_excluded(effects, 0, 0.995).tolist() == [False, True, False]


def test_a_difference_within_chance_excludes_nothing():
    effects = resampled_effects(candidates([0.30, 0.31], noise=0.5), None)
    assert not is_excluded(effects, int(effects.values.argmax()), 0.995).any()


def test_too_few_questions_exclude_nothing():
    n = MIN_QUESTIONS - 1
    effects = resampled_effects(candidates([0.0, 1.5], n), None)
    assert not is_excluded(effects, 0, 0.995).any()
    assert mean_bounds(np.ones(n), 0.9) == (-np.inf, np.inf)


def test_what_is_undefined_is_not_excluded_and_excludes_nothing():
    (good,) = candidates([0.0])
    own = good.losses
    same = replace(good, losses=AnswerLosses(own.clean, own.bad, own.edited))
    effects = resampled_effects([good, same], None)
    assert np.isnan(effects.values).tolist() == [False, True]
    assert not is_excluded(effects, 0, 0.9).any()
    assert not is_excluded(effects, 1, 0.9).any()


def test_bounds_of_a_mean_hold_it_and_widen_with_the_level():
    values = np.random.default_rng(0).normal(1.0, 0.5, 48)
    narrow, wide = mean_bounds(values, 0.9), mean_bounds(values, 0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


def test_a_level_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="level"):
        mean_bounds(np.ones(20), 1.0)


def asked_again(one: Turning, n_phrasings: int, *, has_contents: bool) -> Turning:
    """The same losses once per phrasing."""
    contents = [str(i) for i in range(len(one.turned))] * n_phrasings
    every = AnswerLosses(
        *(np.tile(getattr(one.losses, name), n_phrasings) for name in ("bad", "clean", "edited")),
        contents if has_contents else (),
    )
    return Turning(every, np.tile(one.turned, n_phrasings))


def test_questions_asked_in_several_phrasings_exclude_no_more_than_asked_once():
    once = candidates([0.0, 0.45], n=16, noise=0.6)
    several = [asked_again(one, 6, has_contents=True) for one in once]
    effects, asked_once = (resampled_effects(some, None) for some in (several, once))
    assert effects.n == asked_once.n == 16
    assert effects.values == pytest.approx(asked_once.values)
    spread, wanted = (one.resampled.std(axis=0) for one in (effects, asked_once))
    assert spread == pytest.approx(wanted, rel=0.02)
    alone = resampled_effects([asked_again(one, 6, has_contents=False) for one in once], None)
    assert is_excluded(alone, 0, 0.995).tolist() == [False, True]
    assert not is_excluded(effects, 0, 0.995).any()


def test_many_phrasings_of_too_few_contents_exclude_nothing():
    n = MIN_QUESTIONS - 1
    several = [asked_again(o, 6, has_contents=True) for o in candidates([0.0, 1.5], n)]
    assert not is_excluded(resampled_effects(several, None), 0, 0.995).any()
    contents = several[0].losses.contents
    assert mean_bounds(np.ones(6 * n), 0.9, contents=contents) == (-np.inf, np.inf)


def test_bounds_of_a_mean_are_those_of_its_contents():
    values = np.random.default_rng(0).normal(1.0, 0.5, 48)
    contents = [str(i) for i in range(48)] * 5
    several = mean_bounds(np.tile(values, 5), 0.99, contents=contents)
    assert several == pytest.approx(mean_bounds(values, 0.99))
    assert several[0] < mean_bounds(np.tile(values, 5), 0.99)[0]


def test_candidates_that_have_seen_other_questions_are_refused():
    (one,), (other,) = candidates([0.0], 24), candidates([0.0], 20)
    with pytest.raises(ShapeError, match="questions"):
        resampled_effects([one, other], None)
