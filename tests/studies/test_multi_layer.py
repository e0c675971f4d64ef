import pytest
from tests.workflows.small import small_config

from isthmus.studies.multi_layer import COPIED, EVERY_LAYER, study_multi_layer


@pytest.fixture(scope="module")
def result():
    config = small_config(
        maps=["ridge"], n_train=40, n_validation=8, n_test=12, strengths=[2.0], n_random=1
    )
    return study_multi_layer(config)


def test_every_arm_is_measured_at_all_layers(result):
    arms = {(m.condition, m.edit) for m in result.measurements}
    assert arms == {
        ("native", EVERY_LAYER),
        ("transferred", EVERY_LAYER),
        ("random", EVERY_LAYER),
        ("transferred", COPIED),
    }
    assert {m.target_site for m in result.measurements} == {"resid_post[0..4]"}
    assert {m.split for m in result.measurements} == {"test"}
    assert {m.condition for m in result.measurements if m.map is not None} == {"transferred"}


def test_own_directions_at_every_layer_do_more_than_random_ones(result):
    swaps = {(m.condition, m.edit): m.value for m in result.measurements if m.metric == "swap"}
    assert swaps["transferred", EVERY_LAYER] > swaps["random", EVERY_LAYER] + 0.2


def test_the_notes_say_both_figures(result):
    each, copied = result.notes
    assert "through its own map" in each
    assert "copied" in copied
