import pytest

from isthmus.core.errors import ConfigError
from isthmus.core.sites import Site
from isthmus.studies.travel_study import BEST_SOURCE, study_travel
from isthmus.studies.travel_ways import Route

ROUND = Route((("llama", "qwen2", "llama"),))
DIRECT = Route((("qwen2", "llama"),))
BOTH = Route((("qwen2", "llama"), ("llama", "qwen2", "llama")), BEST_SOURCE)


@pytest.fixture(scope="module")
def result():
    return study_travel(
        "backdoor",
        routes=(DIRECT, ROUND, BOTH),
        n_train=24,
        n_validation=6,
        n_test=12,
        n_random=1,
    )


def swaps(result, row: str) -> dict[str, float]:
    return {
        m.condition: m.value
        for m in result.measurements
        if m.metric == "swap" and m.task == f"travel/backdoor/{row}"
    }


def test_every_route_is_measured_on_test_questions_with_its_controls(result):
    for route in (DIRECT, ROUND, BOTH):
        assert set(swaps(result, route.name)) == {"transferred", "random", "shuffled_map"}
    assert set(swaps(result, "native in llama")) == {"native"}
    assert {m.split for m in result.measurements} == {"test"}


def test_a_round_trip_and_an_average_still_do_more_than_their_controls(result):
    for route in (ROUND, BOTH):
        here = swaps(result, route.name)
        assert here["transferred"] > max(here["random"], here["shuffled_map"]) + 0.1


def test_what_a_route_lost_is_the_difference_of_swaps_with_an_interval(result):
    lost = {m.task: m for m in result.measurements if m.metric == "swap_loss"}
    tasks = [f"travel/backdoor/{route.name}" for route in (DIRECT, ROUND, BOTH)]
    assert set(lost) == {*tasks, *(f"{task}, same place" for task in tasks)}
    placed = [m for task, m in lost.items() if task == f"{tasks[1]}, same place"]
    (native,) = [m for m in result.measurements if m.condition == "native" and m.metric == "swap"]
    here = [(m.target_site, m.positions, m.strength) for m in (*placed, native)]
    assert here[0] == here[1]
    for route in (DIRECT, ROUND):
        one = lost[f"travel/backdoor/{route.name}"]
        native = swaps(result, "native in llama")["native"]
        assert one.value == pytest.approx(native - swaps(result, route.name)["transferred"])
        assert one.ci_low <= one.value <= one.ci_high
    both = lost[f"travel/backdoor/{BOTH.name}"].value
    alone = [swaps(result, route.name)["transferred"] for route in (DIRECT, ROUND)]
    arrived = swaps(result, BOTH.name)["transferred"]
    assert any(both == pytest.approx(one - arrived) for one in alone)


def test_the_picture_and_the_notes_name_every_route(result):
    (svg,) = result.figures.values()
    for route in (DIRECT, ROUND, BOTH):
        assert route.name in svg
        assert any(note.startswith(f"{route.name}: at resid_post[") for note in result.notes)


def test_routes_say_where_they_lead_and_are_refused_when_they_lead_apart():
    assert ROUND.name == "llama → qwen2 → llama"
    assert BOTH.name == "mean of qwen2, llama → qwen2 → llama"
    assert BOTH.target == "llama"
    with pytest.raises(ConfigError, match="two models or more"):
        Route((("llama",),))
    with pytest.raises(ConfigError, match="end in different models"):
        Route((("llama", "qwen2"), ("llama", "gemma2")))


def test_a_route_is_compared_only_with_what_was_measured_before_it():
    sizes = {"n_train": 8, "n_validation": 4, "n_test": 4, "n_random": 1}
    with pytest.raises(ConfigError, match="no route before it"):
        study_travel(routes=(Route((("llama", "qwen2"),), "gemma2 → qwen2"),), **sizes)
    with pytest.raises(ConfigError, match="routes name qwen2, models only llama"):
        study_travel(routes=(DIRECT,), models={"llama": "organism:llama-backdoor"}, **sizes)


def test_sites_of_arrival_are_those_of_the_target(result):
    places = {m.target_site for m in result.measurements if m.metric == "swap"}
    assert places <= {str(Site(layer)) for layer in range(4)}
