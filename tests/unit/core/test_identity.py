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
