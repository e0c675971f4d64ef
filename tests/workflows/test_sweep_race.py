import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_model
from tests.workflows.small import small_config
from typing_extensions import override

from isthmus.core.errors import ConfigError
from isthmus.core.sites import Site
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.racing import Turning
from isthmus.evaluation.recovery import AnswerLosses
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores, Bench
from isthmus.workflows.selection import Scored, best_within
from isthmus.workflows.sweep_blocks import block_sizes
from isthmus.workflows.sweep_race import RaceRules, SweepRace
from isthmus.workflows.sweep_scores import CellScores, Damage, SweepScores

N = 96
SIZES = block_sizes(N, 4)
CONFIG = small_config()
CAREFUL = RaceRules(n_stages=4, keep=1.0)
TWIN = TwinPrompt("bad: ask", "good: ask", "right", "wrong")


class Questions(Bench):
    """So many questions, and no model."""

    def __init__(self, n: int) -> None:
        self.twins = tuple([TWIN] * n)


class Counting(Questions):
    """Gives every arm the same losses, counts the arms and runs a model on a token for each."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.n_calls = 0
        self.lm = tiny_model()
        much, little = np.full(n, 3.0), np.ones(n)
        self.untouched = {
            "clean_given_bad": much,
            "clean_given_clean": little,
            "bad_given_clean": much,
            "bad_given_bad": little,
        }

    @override
    def score_all(self, arms: Sequence[Arm]) -> list[ArmScores]:
        n = len(self.twins)
        self.n_calls += len(arms)
        self.lm.model(torch.ones(len(arms), 1, dtype=torch.long))
        losses = AnswerLosses(np.full(n, 3.0), np.ones(n), np.full(n, 2.0))
        return [ArmScores(losses, losses, n, *([np.ones(n, dtype=bool)] * 2))] * len(arms)


class Told(SweepScores):
    """Knows the losses and the damage of every cell, and notes what it is asked."""

    turns = True

    def tell(self, effects: list[float], damages: list[float], noise: float = 0.1) -> "Told":
        rng = np.random.default_rng(0)
        self.bad, self.clean = 3 + rng.normal(0, noise, N), 1 + rng.normal(0, noise / 3, N)
        wobble = rng.normal(0, noise, (len(effects), N))
        gap = (self.bad - self.clean).mean()
        self.edited = [
            self.bad - effect * gap + w - w.mean()
            for effect, w in zip(effects, wobble, strict=True)
        ]
        self.divergence = [np.full(N, one) for one in damages]
        self.asked: dict[int, int] = {}
        self.harmed: dict[int, int] = {}
        return self

    @override
    def effects(self, cells: Any, n_blocks: int) -> list[CellScores]:
        n = sum(self.n_questions[:n_blocks])
        for cell in cells:
            self.asked[cell] = max(n_blocks, self.asked.get(cell, 0))
        turned = np.full(n, self.turns)
        every = [
            Turning(AnswerLosses(self.bad[:n], self.clean[:n], self.edited[c][:n]), turned)
            for c in cells
        ]
        return [CellScores(one, one, n) for one in every]

    @override
    def damages(self, cells: Any, n_blocks: int) -> list[Damage]:
        n = sum(self.n_questions[:n_blocks])
        for cell in cells:
            self.harmed[cell] = max(n_blocks, self.harmed.get(cell, 0))
        right = np.ones(n, dtype=bool)
        return [Damage(self.divergence[cell][:n], right, right) for cell in cells]


def told(effects: list[float], damages: list[float], rules: RaceRules | None = None) -> Told:
    blocks = [Questions(size) for size in (rules or CAREFUL).sizes(N)]
    arms = [Arm("native", Site(i), "last:3", "add", 1.0) for i in range(len(effects))]
    return Told(blocks, arms).tell(effects, damages)


def exhaustive(scores: Told) -> int:
    every, n_blocks = range(len(scores.arms)), len(scores.blocks)
    found = [
        Scored(scores.arms[c], one.removal.effect, harm.mean)
        for c, one, harm in zip(
            every, scores.effects(every, n_blocks), scores.damages(every, n_blocks), strict=True
        )
    ]
    return found.index(best_within(found, CONFIG))


CELLS = st.lists(
    st.tuples(st.floats(-0.2, 1.1), st.sampled_from([0.0, 0.01, 0.04, 0.08, 0.4])),
    min_size=1,
    max_size=24,
)


@settings(deadline=None, max_examples=40)
@given(CELLS, st.sampled_from([(CAREFUL, 0.02), (RaceRules(), 0.08)]))
def test_what_a_sweep_chooses_is_hardly_worse_than_the_best_of_all(
    cells: list[tuple[float, float]], rules_and_regret: tuple[RaceRules, float]
):
    rules, regret = rules_and_regret
    effects, damages = [list(one) for one in zip(*cells, strict=True)]
    scores = told(effects, damages, rules)
    chosen = SweepRace(scores, CONFIG, rules).run()[0]
    best = exhaustive(told(effects, damages, rules))
    budget = CONFIG.max_benign_kl
    if damages[best] <= budget:
        assert damages[chosen] <= budget
        assert effects[chosen] >= effects[best] - regret
    else:
        assert damages[chosen] == damages[best]


def test_of_every_stage_the_best_quarter_goes_on():
    rules = RaceRules()
    scores = told([0.9 - 0.01 * i for i in range(32)], [0.01] * 32, rules)
    race = SweepRace(scores, CONFIG, rules)
    order = race.run()
    cells = race.cells()
    seen = [one.n for one in cells]
    assert [seen.count(8), seen.count(16)] == [24, 5]
    assert seen.count(N) == len(order) <= 3
    assert all(one.fate == "share" for one in cells if one.n == 8)
    assert set(order) == {i for i, one in enumerate(cells) if one.fate == "in"}
    assert order[0] <= 2
    # Damage is scored of those that are about to go on, not of all.
    assert len(scores.harmed) < len(cells)


@pytest.mark.parametrize("rules", [RaceRules(), CAREFUL])
def test_where_no_answer_turns_the_cell_that_moves_them_furthest_wins(rules: RaceRules):
    scores = told([0.1, 0.2, 0.3, 0.4, 0.5, 0.2, 0.1, 0.3], [0.01] * 8, rules)
    scores.divergence[4] = np.full(N, 0.02)
    scores.turns = False
    race = SweepRace(scores, CONFIG, rules)
    assert race.run()[0] == 4
    assert all(one.effect == 0 for one in race.cells())


def test_cells_with_more_effect_than_the_budget_allows_take_no_place_of_the_share():
    rules = RaceRules()
    scores = told([0.99] * 30 + [0.7, 0.3], [0.4] * 30 + [0.01] * 2, rules)
    race = SweepRace(scores, CONFIG, rules)
    assert race.run()[0] == 30
    assert all(one.n <= 16 for one in race.cells()[:30])


def test_losers_are_dropped_early_and_only_what_is_left_has_its_damage_measured():
    scores = told([0.9, *([0.2] * 20)], [0.01] * 21)
    race = SweepRace(scores, CONFIG, CAREFUL)
    assert race.run()[0] == 0
    cells = race.cells()
    assert cells[0].fate == "in"
    assert cells[0].n == N
    assert all(one.fate == "effect" and one.stage == 1 and one.n == 12 for one in cells[1:])
    assert max(scores.asked[c] for c in range(1, 21)) == 1
    # Those beside the leader among which it was looked for.
    assert set(scores.harmed) < set(range(21))
    assert len(scores.harmed) == 8
    assert race.scores_of(0)[1] is not None


def test_what_does_too_much_damage_is_dropped_for_it_whatever_its_effect():
    race = SweepRace(told([0.99, 0.7, 0.1], [0.4, 0.01, 0.01]), CONFIG, CAREFUL)
    assert race.run() == [1]
    assert [one.fate for one in race.cells()] == ["damage", "in", "effect"]


def test_where_nothing_keeps_the_budget_the_least_damaging_wins():
    race = SweepRace(told([0.9, 0.2, 0.5], [0.4, 0.2, 0.3]), CONFIG, CAREFUL)
    assert race.run()[0] == 1


def test_a_cell_that_was_dropped_comes_back_where_the_winner_does_not_exclude_it():
    scores = told([0.9, 0.6, 0.5], [0.01, 0.01, 0.01])
    # The leader of the first questions turns out to do too much damage on the others.
    scores.divergence[0] = np.concatenate([np.zeros(SIZES[0] + SIZES[1]), np.ones(N)])[:N]
    race = SweepRace(scores, CONFIG, CAREFUL)
    assert race.run()[0] == 1
    assert race.cells()[1].n == N
    assert exhaustive(scores) == 1


def test_cells_without_a_defined_effect_are_all_kept_to_the_end():
    scores = told([0.5, 0.4], [0.02, 0.01])
    scores.bad, scores.clean = scores.clean, scores.bad
    race = SweepRace(scores, CONFIG, CAREFUL)
    assert race.run()[0] == 1
    assert all(math.isnan(one.effect) and one.fate == "in" for one in race.cells())


@pytest.mark.parametrize("n", [1, 5, 12, 23, 24, 96, 97, 200])
@pytest.mark.parametrize("n_stages", [1, 2, 4, 9])
def test_blocks_hold_every_question_once_and_the_first_can_exclude(n: int, n_stages: int):
    sizes = block_sizes(n, n_stages)
    assert sum(sizes) == n
    assert 1 <= len(sizes) <= n_stages
    assert len(sizes) == 1 or sizes[0] >= 12


def test_what_was_kept_is_not_measured_again_and_its_cost_is_known(tmp_path: Path):
    bench = Counting(12)
    arms = [Arm("native", Site(i), "last:3", "add", 1.0) for i in range(3)]

    def scored(cells: list[int], n_before: int) -> list[CellScores]:
        scores = SweepScores([bench], arms, tmp_path / "kept")
        found = scores.effects(cells, 1)
        assert scores.spent_before.n_tokens == n_before
        assert not n_before or scores.spent_before.seconds > 0
        return found

    first = scored([0, 2], 0)
    assert bench.n_calls == 2
    again = scored([0, 1, 2], 2)
    assert bench.n_calls == 3
    assert np.array_equal(first[1].removal.losses.edited, again[2].removal.losses.edited)
    assert np.array_equal(first[1].removal.losses.bad, again[2].removal.losses.bad)
    scored([1], 3)
    (tmp_path / "kept" / "effects-0.json").write_text("{", encoding="utf-8")
    scored([0], 0)
    assert bench.n_calls == 4


@pytest.mark.parametrize(
    "given_wrongly", [{"keep": 0.0}, {"keep": 1.5}, {"level": 0.4}, {"n_stages": 0}]
)
def test_rules_out_of_range_are_refused(given_wrongly: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(given_wrongly))):
        RaceRules(**given_wrongly)
