from functools import cache

import pytest

from isthmus.evaluation.measurements import Measurement
from isthmus.studies.mapper_validation import validate_map
from isthmus.studies.result import StudyResult
from isthmus.studies.text_sets import SETS


@cache
def study() -> StudyResult:
    return validate_map(
        "organism:llama-backdoor",
        "organism:qwen2-backdoor",
        maps=("ridge",),
        site=3,
        n_train=40,
        n_validation=8,
        n_test=12,
        n_completed=6,
    )


def one(metric: str, condition: str, texts: str = "no_trigger", edit: str | None = "replace"):
    (found,) = [
        m
        for m in study().measurements
        if (m.task, m.metric, m.condition) == (f"mapper_validation/{texts}", metric, condition)
        and m.edit == edit
    ]
    return found


def value(*args, **names) -> float:
    return one(*args, **names).value


@pytest.mark.parametrize("texts", SETS)
def test_a_map_is_better_than_its_floors_and_worse_than_its_ceiling(texts):
    mapped, floor = value("kl", "transferred", texts), value("kl", "mean_ablation", texts)
    assert value("kl", "native", texts) < 0.05
    assert value("kl", "native", texts) < mapped < floor
    assert mapped < value("kl", "shuffled_map", texts)
    assert value("rouge_l", "transferred", texts) > value("rouge_l", "mean_ablation", texts)


def test_replacement_costs_the_target_answers_that_the_carried_vector_leaves_alone():
    untouched = value("benign_accuracy", "none", edit=None)
    assert value("benign_accuracy", "native") == pytest.approx(untouched, abs=0.2)
    assert value("benign_accuracy", "transferred") < untouched
    assert value("benign_accuracy", "transferred", edit="add") >= untouched - 0.1
    assert value("behaviour_rate", "transferred", "bad_trigger", edit="add") < 0.7
    assert value("behaviour_rate", "none", "bad_trigger", edit=None) == 1


def test_every_share_says_how_many_samples_it_rests_on():
    wins = one("mapped_beats_ablated", "transferred")
    assert wins.n == 6
    assert wins.ci_low <= wins.value <= wins.ci_high
    closer: Measurement = one("target_beats_source", "transferred", "bad_trigger")
    assert closer.n is None or closer.n <= 6
    assert (closer.value is None) == (closer.n is None)


def test_the_notes_say_what_was_chosen_and_what_the_use_we_recommend_costs():
    notes = " ".join(study().notes)
    assert "least divergence" in notes
    assert "recommended use" in notes
    assert "perplexity is that of the completions under the untouched target" in notes


def test_every_set_has_a_figure_and_rows_side_by_side():
    assert len(study().figures) == len(SETS)
    assert all(svg.startswith("<svg") for svg in study().figures.values())
    assert {row["set"] for row in study().rows} == set(SETS)
    assert all("transferred ridge replace resid_post[3]" in row for row in study().rows)
