import pytest
import torch
from tests.workflows.small import SOURCE, TARGET

from isthmus.studies.probe_transfer import transfer_probe
from isthmus.studies.result import StudyResult

BRIEF = {"n_train": 40, "n_validation": 12, "n_test": 24}


@pytest.fixture(scope="module")
def found() -> StudyResult:
    torch.set_num_threads(1)
    return transfer_probe(SOURCE, TARGET, n_texts=(16,), n_nulls=2, settings=BRIEF)


def values(found: StudyResult, task: str, **wanted: str | None) -> list[float]:
    return [
        m.value
        for m in found.measurements
        if m.task == task and all(getattr(m, name) == value for name, value in wanted.items())
    ]


def test_the_native_probe_knows_and_the_carried_one_ranks_as_well_at_the_last_token(found):
    at = {"positions": "last:1", "metric": "auroc"}
    assert values(found, "probe_transfer", condition="native", **at)[0] > 0.99
    carried = {"condition": "transferred", "map": "ridge", "edit": "pull_back"}
    assert values(found, "probe_transfer", **carried, **at)[0] > 0.95


def test_the_sources_threshold_decides_in_the_target_and_random_maps_do_not(found):
    at = {"positions": "last:1", "metric": "accuracy", "edit": "pull_back"}
    (carried,) = values(found, "probe_transfer", condition="transferred", map="ridge", **at)
    nulls = values(found, "probe_transfer", condition="random", **at)
    assert len(nulls) == 4
    assert carried > 0.9
    assert sum(nulls) / len(nulls) < 0.75


def test_harder_settings_are_measured_too(found):
    tasks = {m.task for m in found.measurements}
    harder = {"16_texts", "no_trigger_texts", "unseen_kinds"}
    assert tasks == {"probe_transfer", *(f"probe_transfer/{name}" for name in harder)}
    unseen = [m for m in found.measurements if m.task.endswith("unseen_kinds")]
    assert all(m.n < BRIEF["n_test"] for m in unseen)


def test_states_that_are_equal_in_every_prompt_count_once_and_have_no_interval(found):
    at_trigger = [m for m in found.measurements if m.positions == "trigger"]
    assert {(m.n, m.ci_low) for m in at_trigger} == {(1, None)}
    assert any("same in every prompt" in note for note in found.notes)
    at_last = [m for m in found.measurements if m.positions == "last:1"]
    assert all(m.n > 1 and m.ci_low is not None for m in at_last)
