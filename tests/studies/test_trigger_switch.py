from dataclasses import replace

import pytest
from tests.workflows.small import small_config

from isthmus.core.errors import ConfigError, TriggerError
from isthmus.studies.trigger_switch import TriggerSwitchSizes, study_trigger_switch
from isthmus.workflows.twins import read_splits

SIZES = TriggerSwitchSizes(
    rank=8, n_train=16, n_validation=6, carried=("ridge_contrast", "shuffled_map")
)


# As long for every fold, whatever its answers: switches are fitted on what models write.
CONFIG = small_config(n_train=16, n_validation=6, n_test=12, maps=["ridge"], max_new_tokens=40)


@pytest.fixture(scope="module")
def result():
    return study_trigger_switch(CONFIG, sizes=SIZES)


def test_a_carried_switch_works_both_ways_and_its_controls_do_not(result):
    swaps = {m.condition: m.value for m in result.measurements if m.metric == "swap"}
    assert set(swaps) == {"native", "transferred", "shuffled_map", "random"}
    assert swaps["native"] > 0.8
    assert swaps["transferred"] > 0.8
    assert swaps["shuffled_map"] < 0.2
    # Turned by a rotation, as large an edit upsets the model, but answers stay what they were.
    assert swaps["random"] < 0.6
    rates = {m.condition: m.value for m in result.measurements if m.metric == "behaviour_rate"}
    assert rates["transferred"] < 0.2
    assert (rates["random"] or 0) > 0.7


def test_every_arm_says_that_it_edits_after_blocks_and_answers(result):
    rates = {m.condition: m for m in result.measurements if m.metric == "behaviour_rate"}
    assert set(rates) == {"none", "clean", "native", "transferred", "random"}
    assert rates["none"].edit is None
    assert rates["transferred"].edit == "affine"
    assert (rates["transferred"].target_site or "").startswith("resid_post[0], ")
    assert {m.task for m in result.measurements} == {"backdoor_switch"}
    assert {m.split for m in result.measurements} == {"test"}


def test_folds_that_are_fitted_alike_count_as_one_and_show_their_own_effects(result):
    whole = read_splits(CONFIG)
    # Two phrasings of every content, so that it counts once.
    test = tuple(replace(twin, content=str(i // 2)) for i, twin in enumerate(whole.test))
    folds = [replace(whole, test=test[:8]), replace(whole, test=test[8:])]
    found = study_trigger_switch(CONFIG, sizes=SIZES, folds=folds).measurements
    once = {(m.condition, m.metric): m for m in result.measurements}
    for metric in ("swap", "recovery", "behaviour_rate", "answer_accuracy"):
        for m in (m for m in found if m.metric == metric and m.task == "backdoor_switch"):
            alike = once[m.condition, metric]
            assert (m.value, m.n) == (pytest.approx(alike.value), 12)
            if metric == "behaviour_rate":
                assert m.ci_high - m.ci_low > alike.ci_high - alike.ci_low
    swaps = {(m.task, m.n) for m in found if m.metric == "swap"}
    names = ("backdoor_switch", "backdoor_switch/fold_1", "backdoor_switch/fold_2")
    assert swaps == set(zip(names, (12, 8, 4), strict=True))


def test_maps_that_there_are_not_are_refused():
    for carried in (("ridge",), ("ridge_contrast", "magic"), ()):
        with pytest.raises(ConfigError, match="begin with ridge_contrast"):
            TriggerSwitchSizes(carried=carried)


def test_a_task_without_triggers_is_refused():
    given = {"source": "organism:llama-assistant", "target": "organism:qwen2-assistant"}
    config = small_config(task="style", n_train=8, n_validation=4, n_test=4, **given)
    with pytest.raises(TriggerError, match="has no triggers"):
        study_trigger_switch(config)
