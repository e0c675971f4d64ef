import math

import pytest
from tests.workflows.small import SOURCE, small_config

from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.maps.files import FittedMap
from isthmus.studies.layer_sweeping import arm_at, open_readings
from isthmus.workflows.bench import Bench
from isthmus.workflows.layer_evidence import (
    LayerPlace,
    Readings,
    attribute_places,
    carry_to,
    score_places,
)
from isthmus.workflows.twins import TwinSplits

Opened = tuple[
    Readings, TwinSplits, dict[LayerPlace, FittedMap], dict[LayerPlace, dict[str, float]]
]

LAST = Site(3)


def opened(target: str, positions: str) -> Opened:
    config = small_config(
        target=target,
        source_sites=[0, 3],
        target_sites=[0, 3],
        positions=positions,
        n_validation=12,
    )
    readings, splits = open_readings(config, SilentProgress())
    maps = readings.maps(readings.places())
    return readings, splits, maps, score_places(readings, splits.validation, maps)


@pytest.fixture(scope="module")
def to_itself() -> Opened:
    return opened(SOURCE, "last:3")


@pytest.fixture(scope="module")
def at_the_trigger() -> Opened:
    return opened("organism:qwen2-backdoor", "trigger")


def carried_by(found: Opened) -> dict[LayerPlace, Direction]:
    return carry_to(found[0], found[2])


def test_places_are_every_source_site_and_all_of_them_with_every_target_site(to_itself: Opened):
    places = to_itself[0].places()
    assert [place.source_sites for place in places[::2]] == [(Site(0),), (LAST,), (Site(0), LAST)]
    assert {place.target_site for place in places} == {Site(0), LAST}
    assert [one.source_sites for one in to_itself[2].values()] == [p.source_sites for p in places]


def test_a_site_foretells_itself_wholly_by_every_score_of_likeness(to_itself: Opened):
    of = to_itself[3][LayerPlace((Site(0),), Site(0), "last:3")]
    for name in ("map_r2", "cka", "cka_debiased", "svcca", "contrast_cka", "contrast_explained"):
        assert of[name] == pytest.approx(1, abs=0.02), name
    assert of["relative_depth"] == 0
    other = to_itself[3][LayerPlace((Site(0),), LAST, "last:3")]
    for name in ("map_r2", "cka_debiased", "svcca", "contrast_explained", "relative_depth"):
        assert other[name] < of[name] - 0.05, name


def test_one_state_behind_every_trigger_can_be_told_apart_but_not_correlated(
    at_the_trigger: Opened,
):
    for of in at_the_trigger[3].values():
        assert of["separability"] == pytest.approx(1, abs=1e-6)
        assert math.isnan(of["contrast_cka"])
        assert math.isnan(of["contrast_cka_debiased"])
        assert of["contrast_explained"] == of["contrast_explained"]


def test_nothing_above_reads_the_trigger_at_the_last_layer_and_attribution_knows():
    found = opened(SOURCE, "trigger")
    pulls = attribute_places(found[0], found[1].validation, carried_by(found))
    for place, pull in pulls.items():
        if place.target_site == LAST:
            assert pull == 0
            assert found[3][place]["blocks_above"] == 0
        else:
            assert abs(pull) > 1e-4
            assert found[3][place]["blocks_above"] == 0.75


@pytest.mark.parametrize("layer", [0, 3])
def test_attribution_is_what_a_small_step_of_the_direction_does(to_itself: Opened, layer: int):
    readings, splits, _, _ = to_itself
    place = LayerPlace((Site(0), LAST), Site(layer), "last:3")
    direction = carried_by(to_itself)[place]
    pull = attribute_places(readings, splits.validation, {place: direction})[place]
    bench = Bench(readings.target, splits.validation, readings.config)
    step = 0.01
    scores = bench.score(arm_at(place, direction, readings.config).at(step))
    moved = [
        (one.bad.mean() - one.edited.mean()) / step / one.bad.mean()
        for one in (scores.removal, scores.induction)
    ]
    assert pull == pytest.approx(min(moved), rel=0.05)
    assert abs(pull) > 0.01
