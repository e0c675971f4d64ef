import pytest
from tests.workflows.small import small_config

from isthmus.studies.multi_layer import COPIED, EVERY_LAYER, study_multi_layer

STRENGTHS = {0.4, 0.5}
"""2 and half of the number of layers, over five layers."""


@pytest.fixture(scope="module")
def result():
    config = small_config(
        maps=["ridge"], n_train=40, n_validation=8, n_benign=16, n_test=12, strengths=[2.0]
    )
    return study_multi_layer(config)


def rows(result, split, metric):
    return [m for m in result.measurements if (m.split, m.metric) == (split, metric)]


def test_every_arm_is_measured_at_all_layers_beside_the_untouched_model(result):
    arms = {(m.condition, m.edit) for m in result.measurements if m.split == "test"}
    both = {(c, e) for c in ("native", "transferred", "random") for e in (EVERY_LAYER, COPIED)}
    assert arms == both | {("none", None)}
    sites = {m.target_site for m in result.measurements if m.condition != "none"}
    assert sites == {"resid_post[0..4]"}
    assert {m.condition for m in result.measurements if m.map is not None} == {"transferred"}


def test_random_directions_have_as_many_draws_as_the_configuration_says(result):
    seeds = {m.seed for m in rows(result, "test", "swap") if m.condition == "random"}
    assert seeds == {0, 1}
    random = [m.strength for m in rows(result, "test", "swap") if m.condition == "random"]
    carried = [m.strength for m in rows(result, "test", "swap") if m.condition == "transferred"]
    assert set(random) <= set(carried)


@pytest.mark.parametrize("metric", ["swap", "behaviour_rate", "benign_kl", "benign_accuracy"])
def test_every_strength_is_measured_once_on_validation(result, metric):
    found = {}
    for m in rows(result, "validation", metric):
        found.setdefault((m.condition, m.edit), []).append(m.strength)
    arms = {(c, e) for c in ("native", "transferred") for e in (EVERY_LAYER, COPIED)}
    for arm in arms | {("random", EVERY_LAYER)}:
        assert set(found[arm]) >= STRENGTHS
        assert len(set(found[arm])) == len(found[arm])
    assert all(m.n == 8 for m in rows(result, "validation", metric) if m.edit == EVERY_LAYER)


def test_validation_says_of_every_layer_what_its_vector_does_when_it_is_copied(result):
    edits = {m.edit for m in rows(result, "validation", "swap") if m.condition == "native"}
    assert {f"{COPIED}: resid_post[{layer}]" for layer in range(5)} < edits


def test_own_directions_at_every_layer_do_more_than_random_ones(result):
    swaps = {(m.condition, m.edit): m.value for m in rows(result, "test", "swap")}
    assert swaps["transferred", EVERY_LAYER] > swaps["random", EVERY_LAYER] + 0.2


def test_the_notes_say_every_figure_and_what_was_chosen(result):
    for condition in ("native", "transferred"):
        for edit in (EVERY_LAYER, COPIED):
            assert any(f"{condition}, {edit}: swap" in note for note in result.notes)
            assert any(f"{condition}, {edit}: strength" in note for note in result.notes)
        assert any(f"{condition}: copied to all layers is" in note for note in result.notes)


def test_the_picture_shows_what_every_strength_does(result):
    ((title, svg),) = result.figures.items()
    assert title == "Every strength at every layer of organism:qwen2-backdoor"
    for words in ("Swap", "Behaviour rate", "Right answers, benign prompts", "0.4"):
        assert words in svg
