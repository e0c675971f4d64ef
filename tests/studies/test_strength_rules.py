import pytest

from isthmus.core.errors import ConfigError
from isthmus.studies.result import StudyResult
from isthmus.studies.strength_rules import study_strengths

PAIR = ("organism:llama-backdoor", "organism:qwen2-backdoor")
SMALL = {"n_train": 60, "n_validation": 16, "n_test": 24, "n_random": 1, "positions": "last:3"}
BUDGETS = (0.002, 0.02)


@pytest.fixture(scope="module")
def found() -> StudyResult:
    return study_strengths(*PAIR, budgets=BUDGETS, settings=SMALL)


def values(found: StudyResult, metric: str) -> dict[tuple[str, str | None], float]:
    return {
        (m.condition, m.edit): m.value
        for m in found.measurements
        if m.metric == metric and m.value is not None
    }


def test_every_rule_and_every_method_is_measured_on_test_questions(found: StudyResult):
    rules = {m.edit for m in found.measurements if m.condition == "transferred"}
    budgets = {f"damage {b:g}{end}" for b in BUDGETS for end in ("", ", keeping norms")}
    assert rules == {"chosen with labels", "own norm", "norm matched"} | budgets
    assert {m.condition for m in found.measurements} == {
        "transferred",
        "native",
        "random",
        "shuffled_map",
    }
    assert {m.split for m in found.measurements} == {"test"}
    assert len(found.figures) == 1


def test_a_larger_budget_is_spent_and_a_carried_direction_buys_more_for_it(found: StudyResult):
    damage, swap = values(found, "benign_kl"), values(found, "swap")
    for condition in ("transferred", "native", "random"):
        assert damage[condition, "damage 0.02"] > damage[condition, "damage 0.002"]
    assert swap["transferred", "damage 0.02"] > swap["transferred", "damage 0.002"]
    for control in ("random", "shuffled_map"):
        assert swap["transferred", "damage 0.02"] > 2 * swap[control, "damage 0.02"]


def test_a_budget_that_is_not_positive_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="expected divergences above 0"):
        study_strengths(*PAIR, budgets=(0.0,))
