import math

import numpy as np
import pytest

from isthmus.evaluation.layer_choice import DEFAULT_RULE
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import AnswerLosses
from isthmus.studies.layer_ranking import SCOPES, rank_layers, resampled_effects
from isthmus.studies.layer_sweeping import Costs, TriedPlace
from isthmus.studies.result import StudyResult
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores
from isthmus.workflows.selection import Scored

SMALL = {
    "n_train": 30,
    "n_validation": 16,
    "n_test": 16,
    "strengths": [0.5, 1.0],
    "source_sites": [0, 3],
    "target_sites": [0, 4],
    "positions": "last:3",
    "n_threads": 1,
}
RULE = " + ".join(DEFAULT_RULE)


@pytest.fixture(scope="module")
def found() -> StudyResult:
    return rank_layers(
        "organism:llama-backdoor", "organism:qwen2-backdoor", settings=SMALL, n_resamples=50
    )


def of(found: StudyResult, **wanted: object) -> list[Measurement]:
    return [m for m in found.measurements if all(getattr(m, k) == v for k, v in wanted.items())]


def test_every_place_is_tried_once_and_scored_by_every_score(found: StudyResult):
    swaps = of(found, metric="swap")
    assert len({(m.source_site, m.target_site) for m in swaps}) == len(swaps) == 6
    assert {m.strength for m in swaps} <= {0.5, 1.0}
    assert len(of(found, metric="layer_score", edit="attribution")) == 6
    assert {m.task for m in found.measurements} == {"layer_ranking_backdoor"}


def test_the_regret_of_a_rule_is_that_of_the_place_that_it_scores_highest(found: StudyResult):
    swaps = {(m.source_site, m.target_site): m.value or 0.0 for m in of(found, metric="swap")}
    scores = {
        (m.source_site, m.target_site): m.value
        for m in of(found, metric="layer_score", edit="attribution")
    }
    first = max(scores, key=lambda place: scores[place] or -math.inf)
    (one,) = of(found, metric="regret", edit="attribution", source_site="either")
    assert one.value == pytest.approx(max(swaps.values()) - swaps[first])
    assert one.ci_low is not None
    assert one.n == 16


def test_a_random_choice_regrets_the_mean_and_has_no_rank_correlation(found: StudyResult):
    swaps = [m.value or 0.0 for m in of(found, metric="swap")]
    (one,) = of(found, metric="regret", edit="a random choice", source_site="either")
    assert one.value == pytest.approx(max(swaps) - np.mean(swaps))
    (flat,) = of(found, metric="rank_correlation", edit="a random choice", source_site="either")
    assert flat.value is None


def test_rules_are_held_against_baselines_and_the_sweep_in_every_scope(found: StudyResult):
    for scope in SCOPES:
        rules = {m.edit for m in of(found, metric="regret", source_site=scope)}
        assert {RULE, "the middle layers", "the first layer", "the sweep"} <= rules
        (three,) = of(found, metric="regret_of_three", edit=RULE, source_site=scope)
        assert (three.value or 0) >= 0
    assert any(RULE in note for note in found.notes)
    assert len(found.figures) == 1


def test_questions_of_one_content_are_drawn_together_for_every_place():
    rng = np.random.default_rng(0)
    bad, clean = np.full(90, 3.0), np.full(90, 1.0)
    contents = [str(i % 15) for i in range(90)]

    def tried(contents: list[str]) -> list[TriedPlace]:
        places = []
        for _ in range(2):
            edited = np.tile(rng.normal(2.0, 0.3, 15), 6)
            losses = AnswerLosses(bad, clean, edited, contents)
            scored = Scored(Arm("transferred"), 0.5, 0.0)
            places.append(TriedPlace(scored, is_usable=True, test=ArmScores(losses, losses, 90)))
        return places

    effects = resampled_effects(tried(contents), 400, 0)
    assert effects.shape == (401, 2)
    alone = resampled_effects(tried([]), 400, 0)
    assert (alone.std(axis=0) < 0.6 * effects.std(axis=0)).all()


def test_a_rule_costs_its_scores_and_the_choices_of_strength():
    costs = Costs(per_place=100, scores=30, attribution=50, trial=4)
    assert costs.of_rule(["map_r2"], 20) == pytest.approx(130 / 2000)
    assert costs.of_rule(["attribution"], 20) == pytest.approx(150 / 2000)
    assert costs.of_rule(["trial"], 20) == pytest.approx(180 / 2000)
    assert costs.of_rule(["trial", "attribution", "svcca"], 20, 3) == pytest.approx(460 / 2000)


def test_a_brief_trial_asks_few_questions_at_strength_one_and_costs_a_fraction(found: StudyResult):
    trials = of(found, metric="layer_score", edit="trial")
    assert len(trials) == 6
    assert max(m.value or 0 for m in trials) > 0.5
    for scope in SCOPES:
        (cost,) = of(found, metric="relative_cost", edit="trial", source_site=scope)
        # Eight questions both ways at one strength, and one place of those of the scope.
        n_places = {"one source layer": 4, "all source layers": 2, "either": 6}[scope]
        assert 1 / n_places < (cost.value or 0) < 1 / n_places + 0.5
