import pytest
from tests.workflows.small import SOURCE, TARGET

from isthmus.core.errors import ConfigError
from isthmus.studies.result import StudyResult
from isthmus.studies.subspace_study import study_subspaces


@pytest.fixture(scope="module")
def result() -> StudyResult:
    sizes = {"n_train": 24, "n_validation": 6, "n_test": 12, "n_random": 1}
    return study_subspaces(SOURCE, TARGET, ranks=(1, 2), edits=("set_coordinate",), **sizes)


def swaps(result: StudyResult, row: str) -> dict[str, float]:
    task = f"subspaces/backdoor/set_coordinate/{row}"
    return {
        m.condition: m.value for m in result.measurements if (m.task, m.metric) == (task, "swap")
    }


def test_every_rank_is_measured_native_and_carried_with_controls_of_its_rank(result):
    every = {"native", "transferred", "random", "shuffled_map", "identity_map"}
    assert set(swaps(result, "rank 1")) == set(swaps(result, "rank 2")) == every
    assert set(swaps(result, "direction")) == {"native", "transferred"}
    assert {m.split for m in result.measurements} == {"test"}


def test_a_carried_subspace_does_more_than_what_knows_nothing(result):
    for row in ("rank 1", "rank 2"):
        here = swaps(result, row)
        controls = [here[name] for name in ("random", "shuffled_map", "identity_map")]
        assert here["transferred"] > max(controls) + 0.1


def test_what_a_rank_loses_against_the_first_is_the_difference_of_swaps(result):
    lost = {
        (m.task.split("/")[-1], m.condition): m
        for m in result.measurements
        if m.metric == "swap_loss"
    }
    assert set(lost) == {(r, c) for r in ("rank 2", "direction") for c in ("native", "transferred")}
    for (row, condition), one in lost.items():
        difference = swaps(result, "rank 1")[condition] - swaps(result, row)[condition]
        assert one.value == pytest.approx(difference)
        assert one.ci_low <= one.value <= one.ci_high


def test_notes_say_where_every_rank_was_placed_and_what_it_gained(result):
    assert any("rank 2, transferred: at resid_post[" in note for note in result.notes)
    assert all("gained" in note for note in result.notes if "rank 2" in note)


def test_no_rank_is_refused():
    with pytest.raises(ConfigError, match="no rank to measure"):
        study_subspaces("organism:nowhere", "organism:nowhere", ranks=())
