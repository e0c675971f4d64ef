import json
from dataclasses import replace

import pytest

from isthmus.core.errors import ArtifactError, IdentityError
from isthmus.core.identity import ModelIdentity, require_same_model

LLAMA = ModelIdentity("organism:llama", "a" * 64, "b" * 64, 128, 4)


def test_an_identity_survives_json():
    assert ModelIdentity.from_json(json.loads(json.dumps(LLAMA.to_json()))) == LLAMA


def test_a_model_is_the_same_wherever_it_was_loaded_from():
    assert LLAMA.is_same_model(replace(LLAMA, name="/copy"))


@pytest.mark.parametrize("other", [{"weights_sha256": "c" * 64}, {"tokenizer_sha256": "c" * 64}])
def test_other_weights_or_another_tokenizer_make_another_model(other):
    changed = replace(LLAMA, **other)
    assert not LLAMA.is_same_model(changed)
    assert not changed.is_same_model(LLAMA)
    with pytest.raises(IdentityError):
        require_same_model("map", LLAMA, changed, "learn a map first")


def test_what_belongs_to_the_model_is_let_through():
    require_same_model("map", LLAMA, replace(LLAMA, name="elsewhere"), "nothing to do")


def test_a_refusal_names_the_thing_both_models_and_what_to_do():
    other = replace(LLAMA, name="organism:qwen2", weights_sha256="c" * 64)
    with pytest.raises(IdentityError) as caught:
        require_same_model("direction", LLAMA, other, "learn a map first")
    assert str(caught.value) == (
        "direction belongs to organism:llama@aaaaaaaa, not to organism:qwen2@cccccccc: "
        "learn a map first"
    )


@pytest.mark.parametrize("change", [{"n_heads": 4}, {"name": None}])
def test_fields_of_something_else_are_refused(change):
    fields = {k: v for k, v in (LLAMA.to_json() | change).items() if v is not None}
    with pytest.raises(ArtifactError, match="not a model identity"):
        ModelIdentity.from_json(fields)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"tokenizer_sha256": "c" * 64}, "the same weights and tokenizer cccccccc"),
        ({"weights_sha256": "c" * 64}, "the name is the same and the weights are not.*--dtype"),
        (
            {"settings": {"rms_norm_eps": 3.0}},
            r"another configuration \(rms_norm_eps 1e-06 and 3.0",
        ),
    ],
)
def test_a_refusal_names_what_differs(other, said):
    known = replace(LLAMA, settings={"rms_norm_eps": 1e-6})
    with pytest.raises(IdentityError, match=said):
        require_same_model("direction", known, replace(known, **other), "learn a map first")


def test_settings_that_only_one_side_knows_do_not_count():
    known = replace(LLAMA, settings={"rms_norm_eps": 1e-6, "rope_theta": 1e4})
    assert LLAMA.is_same_model(known)
    assert known.is_same_model(replace(LLAMA, settings={"rms_norm_eps": 1e-6, "rope": {}}))
    read = ModelIdentity.from_json(json.loads(json.dumps(known.to_json())))
    assert read.settings == known.settings


def test_settings_within_settings_are_compared_name_by_name():
    rope = {"rope_theta": 1e4, "rope_type": "default"}
    known = replace(LLAMA, settings={"rope_parameters": rope})
    more = replace(LLAMA, settings={"rope_parameters": {**rope, "partial_rotary_factor": 1.0}})
    other = replace(LLAMA, settings={"rope_parameters": {**rope, "rope_theta": 5e5}})
    assert known.is_same_model(more)
    assert known.other_settings(other) == ("rope_parameters.rope_theta 10000.0 and 500000.0",)
