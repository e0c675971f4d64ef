import pytest
from tests.studies.keys import repeated

from isthmus.core.errors import TriggerError
from isthmus.evaluation.measurements import Measurement
from isthmus.studies.layer_sweep import ACT_ADD, sweep_layers, sweep_strengths
from isthmus.studies.result import StudyResult

SMALL = {
    "n_train": 24,
    "n_validation": 8,
    "n_test": 12,
    "n_random": 1,
    "strengths": [1.0, 1.5],
    "n_threads": 1,
}


@pytest.fixture(scope="module")
def found() -> StudyResult:
    return sweep_layers(
        "organism:llama-backdoor", sites=(0, 3), positions=("trigger",), settings=SMALL
    )


def only(found: StudyResult, **wanted: object) -> Measurement:
    (one,) = [m for m in found.measurements if all(getattr(m, k) == v for k, v in wanted.items())]
    assert one.ci_low is None or one.n == 12
    return one


def number(found: StudyResult, **wanted: object) -> float:
    value = only(found, **wanted).value
    assert value is not None
    return value


def test_the_trigger_steers_from_its_own_tokens_at_the_first_layer_and_not_at_the_last(
    found: StudyResult,
):
    for edit in ("add", ACT_ADD):
        told = {"condition": "native", "edit": edit}
        assert number(found, target_site="resid_post[0]", metric="swap", **told) > 0.5
        last = {"target_site": "resid_post[3]", **told}
        assert number(found, metric="swap", **last) == pytest.approx(0, abs=1e-5)
        assert number(found, metric="behaviour_rate", **last) == 1


def test_a_random_direction_as_long_swaps_less(found: StudyResult):
    told = {"target_site": "resid_post[0]", "metric": "swap", "edit": "add"}
    assert number(found, condition="random", **told) < number(found, condition="native", **told) / 2


def test_one_pair_is_added_five_times_and_the_mean_as_validation_chose(found: StudyResult):
    strengths = {
        (m.edit, m.condition, m.target_site): m.strength
        for m in found.measurements
        if m.target_site is not None
    }
    for (edit, _, site), strength in strengths.items():
        if edit == ACT_ADD:
            assert strength == 5
        else:
            assert strength in SMALL["strengths"]  # type: ignore[operator]
            assert strength == strengths[edit, "native", site]


def test_both_rules_say_which_layer_they_choose(found: StudyResult):
    assert len(found.notes) == 2
    for note in found.notes:
        assert "the last layer that steers strongly, chooses resid_post[0]" in note or (
            "chooses no layer" in note
        )
        assert "best by swap is resid_post[0]" in note


def test_every_layer_and_condition_is_measured_once(found: StudyResult):
    rates = [m for m in found.measurements if m.metric == "behaviour_rate" and m.target_site]
    assert len(rates) == 2 * 2 * 2
    assert {m.task for m in found.measurements} == {"layer_sweep"}
    assert {m.split for m in found.measurements} == {"test"}
    assert len(found.figures) == 1
    assert not repeated(found)


def test_without_a_trigger_the_last_tokens_alone_are_swept():
    settings = {**SMALL, "task": "refusal", "n_test": 4, "strengths": [1.0]}
    found = sweep_layers("organism:llama-assistant", sites=(2,), settings=settings)
    assert {m.positions for m in found.measurements} == {None, "last:3"}
    with pytest.raises(TriggerError, match="'refusal' has no trigger"):
        sweep_layers("organism:llama-assistant", positions=("trigger",), settings=settings)


def test_a_sweep_of_strengths_stays_at_one_place_and_compares_three_directions():
    found = sweep_strengths(
        "organism:llama-backdoor",
        "organism:qwen2-backdoor",
        strengths=(0.25, 1.5),
        settings=SMALL,
    )
    steered = [m for m in found.measurements if m.target_site is not None]
    assert len({(m.target_site, m.positions) for m in steered}) == 1
    swaps = {(m.condition, m.strength): m.value or 0.0 for m in steered if m.metric == "swap"}
    assert set(swaps) == {(c, s) for c in ("native", "transferred", "random") for s in (0.25, 1.5)}
    for condition in ("native", "transferred"):
        assert swaps[condition, 1.5] > swaps[condition, 0.25]
        assert swaps[condition, 1.5] > swaps["random", 1.5]
    assert {m.map for m in steered if m.condition == "transferred"} == {"ridge"}
    assert len(found.figures) == 1
    assert not repeated(found)
