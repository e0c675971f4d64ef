import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.workflows.small import TARGET, small_config
from typing_extensions import override

from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.models.changes import BenignChange
from isthmus.models.language_model import load_language_model
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.measuring import point_effect
from isthmus.workflows.rule_choice import (
    MOST_DAMAGE,
    N_ASKED,
    N_KEPT,
    RuleChooser,
    brief_effects,
    nearest_to_own_length,
    rule_notes,
)
from isthmus.workflows.run import RunResult, run
from isthmus.workflows.selection import Cell
from isthmus.workflows.twin_directions import at_one_site, learn_twin_directions
from isthmus.workflows.twins import read_splits

KINDS = ("trigger", "last:3")
GRID = (0.5, 1.0, 2.0, 3.0)


def config_by_rules(**changes: object) -> RunConfig:
    return small_config(
        **{"n_train": 24, "n_validation": 12, "strengths": GRID, "choose_by": "rules"} | changes
    )


@dataclass(frozen=True)
class Places:
    """An organism's own direction at every layer and kind of positions."""

    bench: Bench
    learned: dict[str, Direction]

    @property
    def cells(self) -> list[Cell]:
        return [Cell(site, kind) for site in self.learned[KINDS[0]].sites for kind in KINDS]

    def arm(self, cell: Cell) -> Arm:
        direction = at_one_site(self.learned[cell.positions], cell.site)
        return Arm("native", cell.site, cell.positions, "add", 1.0, direction)

    def chooser(self, **changes: object) -> RuleChooser:
        config = config_by_rules(**changes)
        return RuleChooser(Bench(self.bench.lm, self.bench.twins, config), config, SilentProgress())


@pytest.fixture(scope="module")
def places() -> Places:
    config = config_by_rules()
    lm = load_language_model(TARGET)
    splits = read_splits(config)
    learned = learn_twin_directions(lm, splits.train, lm.sites("all"), KINDS, config)
    return Places(Bench(lm, splits.validation, config), learned)


def effects_of(places: Places, arms: Sequence[Arm]) -> list[float]:
    """Swap on the first questions, measured arm by arm."""
    few = Bench(places.bench.lm, places.bench.twins[:N_ASKED], config_by_rules())
    return [point_effect(few.score(arm)) for arm in arms]


def test_a_trial_is_swap_on_the_first_questions(places: Places):
    arms = [places.arm(cell) for cell in places.cells]
    few = Bench(places.bench.lm, places.bench.twins[:N_ASKED], config_by_rules())
    assert brief_effects(few, arms) == pytest.approx(effects_of(places, arms), abs=1e-5)
    assert places.chooser()._few.twins == few.twins


def test_the_place_is_one_of_the_best_of_the_trial_and_does_nearly_as_much_as_any(places: Places):
    chosen = places.chooser().choose_cell(places.cells, places.arm)
    trial = effects_of(places, [places.arm(cell) for cell in places.cells])
    best = [places.cells[i] for i in np.argsort(trial)[-N_KEPT:]]
    assert Cell(chosen.site, chosen.positions) in best
    every = [places.arm(cell).at(strength) for cell in places.cells for strength in GRID]
    (found,) = effects_of(places, [chosen])
    assert found >= max(effects_of(places, every)) - 0.05


class Harmful(Bench):
    """Diverges on benign prompts in proportion to the strength and loses answers beyond one."""

    per_strength, harmless_up_to = 0.01, math.inf

    @override
    def benign_change(self, arm: Arm) -> BenignChange:
        n = len(self.encoded.benign)
        right = torch.ones(n, dtype=torch.bool)
        kept = right & (arm.strength <= self.harmless_up_to)
        return BenignChange(
            torch.full((n,), self.per_strength * arm.strength), right, kept, torch.zeros(n)
        )

    @override
    def score_all(self, arms: Sequence[Arm]):
        raise AssertionError("the strength is found without answers")


@pytest.mark.parametrize(
    ("per_strength", "harmless_up_to", "budget", "most"),
    [
        (0.01, math.inf, 0.05, 2.0),
        (0.01, math.inf, 0.008, 0.8),
        (0.001, math.inf, 0.05, 3.0),
        (0.001, 1.5, 0.05, 1.5),
        (1.0, math.inf, 0.05, 0.5),
    ],
    ids=["within .02", "within the run's budget", "never beyond the grid", "answers", "too much"],
)
def test_strengths_to_compare_end_where_benign_prompts_show_it(
    places: Places, per_strength: float, harmless_up_to: float, budget: float, most: float
):
    config = config_by_rules(max_benign_kl=budget)
    bench = Harmful(places.bench.lm, places.bench.twins, config)
    bench.per_strength, bench.harmless_up_to = per_strength, harmless_up_to
    chooser = RuleChooser(bench, config, SilentProgress())
    bounded = chooser._within_damage(places.arm(places.cells[0]))
    doses = chooser._doses(bounded.arm.strength)
    assert (bounded.damage <= min(budget, MOST_DAMAGE)) == (per_strength < 1)
    assert doses == sorted(doses)
    assert len(doses) <= 3
    assert doses[0] <= 1.0
    # Five halvings of the range from .5 to 3 come within 6 % of the largest harmless strength.
    assert 0.94 * most <= doses[-1] <= most * 1.001
    assert MOST_DAMAGE == 0.02


class HarmfulButFor(Harmful):
    """Does harm at every place but the harmless one."""

    harmless: Direction | None = None
    score_all = Bench.score_all

    @override
    def benign_change(self, arm: Arm) -> BenignChange:
        is_harmless = arm.direction is self.harmless
        self.per_strength = 0.001 if is_harmless else 1.0 + arm.site.layer
        return super().benign_change(arm)


def test_however_much_they_do_places_that_do_harm_give_way_to_one_that_does_not(places: Places):
    config = config_by_rules()
    bench = HarmfulButFor(places.bench.lm, places.bench.twins, config)
    chooser = RuleChooser(bench, config, SilentProgress())
    arms = {cell: places.arm(cell) for cell in places.cells}
    weakest = places.cells[int(np.argmin(effects_of(places, list(arms.values()))))]
    bench.harmless = arms[weakest].direction
    chosen = chooser.choose_cell(places.cells, arms.__getitem__)
    assert (chosen.site, chosen.positions) == (weakest.site, weakest.positions)
    # Where all do harm, the least damaging is taken, at its gentlest.
    bench.harmless = None
    left = chooser.choose_cell(places.cells, arms.__getitem__)
    assert (left.site, left.strength) == (Site(0), GRID[0])
    assert chooser.choose_strength(arms[weakest]).strength == GRID[0]


def test_an_edit_without_strength_is_placed_by_the_trial_alone(places: Places):
    chooser = places.chooser(edit="ablate")

    def make(cell: Cell) -> Arm:
        direction = at_one_site(places.learned[cell.positions], cell.site)
        return Arm("native", cell.site, cell.positions, "ablate", 1.0, direction)

    chosen = chooser.choose_cell(places.cells, make)
    few = Bench(places.bench.lm, places.bench.twins[:N_ASKED], config_by_rules(edit="ablate"))
    removed = [point_effect(few.score(make(cell)), removal_only=True) for cell in places.cells]
    best = places.cells[int(np.argmax(removed))]
    assert (chosen.site, chosen.positions) == (best.site, best.positions)


@given(st.lists(st.floats(0.01, 100), min_size=1, unique=True))
def test_a_trial_is_made_at_the_strength_nearest_to_the_directions_own_length(
    strengths: list[float],
):
    chosen = nearest_to_own_length(strengths)
    assert chosen in strengths
    assert max(chosen, 1 / chosen) == pytest.approx(min(max(s, 1 / s) for s in strengths))


def test_a_note_says_that_rules_chose_and_none_that_a_sweep_did():
    (note,) = rule_notes(config_by_rules(), 10)
    assert "8 questions at each of 10 places; strengths at the best 3" in note
    assert not rule_notes(small_config(), 10)


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    sizes = {"n_validation": 24, "n_benign": 48, "strengths": GRID}
    config = small_config(choose_by="rules", **sizes)
    return run(config, out=tmp_path_factory.mktemp("rules") / "results")


def swaps_of(result: RunResult, condition: str) -> list[Measurement]:
    wanted = (condition, "swap", "test")
    return [m for m in result.measurements if (m.condition, m.metric, m.split) == wanted]


def test_a_run_by_rules_asks_the_target_for_less_than_the_native_sweep_and_carries_as_much(
    ruled: RunResult,
):
    tokens = {m.condition: m.value for m in ruled.measurements if m.metric == "target_tokens"}
    assert 0 < tokens["transferred"] < 0.8 * tokens["native"]
    (native,) = swaps_of(ruled, "native")
    carried = max(m.value for m in swaps_of(ruled, "transferred"))
    assert carried >= native.value - 0.1


def test_the_report_says_that_rules_found_the_place(ruled: RunResult):
    page = (ruled.folder / "report.html").read_text(encoding="utf-8")
    assert "were found by rules" in page
    assert "choose_by: rules" in page


def test_other_maps_have_strengths_of_their_own_at_the_same_place(ruled: RunResult):
    swaps = swaps_of(ruled, "transferred")
    assert {m.map for m in swaps} == {"ridge", "procrustes"}
    assert len({(m.target_site, m.positions) for m in swaps}) == 1
    assert all(GRID[0] <= m.strength <= GRID[-1] for m in swaps)
