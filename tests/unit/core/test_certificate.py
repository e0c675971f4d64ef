import json
from dataclasses import replace

import pytest

from isthmus.core.certificate import Certificate, CertifiedNumber, Passage, worst_quality
from isthmus.core.errors import ArtifactError, IdentityError
from isthmus.core.identity import ModelIdentity

SMALL = ModelIdentity("small", "w1", "t1", 8, 2)
LARGE = ModelIdentity("large", "w2", "t2", 16, 3)
CERTIFICATE = Certificate(
    SMALL,
    LARGE,
    ("resid_post[0]", "resid_post[1]"),
    "resid_post[2]",
    "ridge",
    {"r2_held_out": 0.9},
    behaviour={"swap": CertifiedNumber(0.8, 0.7, 0.9, 64)},
    damage={"benign_kl": CertifiedNumber(None, None, None, None)},
    seed=3,
    way=(
        Passage(SMALL, LARGE, ("resid_post[0]",), "resid_post[2]", "ridge", {"r2_held_out": 0.9}),
    ),
)


def test_a_certificate_survives_json():
    assert Certificate.from_json(json.loads(json.dumps(CERTIFICATE.to_json()))) == CERTIFICATE


def test_a_certificate_says_whether_the_behaviour_was_measured():
    assert CERTIFICATE.is_measured
    assert not replace(CERTIFICATE, behaviour={}).is_measured


def test_a_certificate_is_about_one_model_wherever_it_was_loaded_from():
    CERTIFICATE.require_target(replace(LARGE, name="elsewhere"))
    with pytest.raises(IdentityError, match="the certificate is about large@w2"):
        CERTIFICATE.require_target(SMALL)


@pytest.mark.parametrize(
    "damage", [{"seed": 1, "more": 2}, {"target": None}, {"behaviour": {"x": {}}}, {"way": [{}]}]
)
def test_a_damaged_certificate_is_refused(damage):
    with pytest.raises(ArtifactError):
        Certificate.from_json({**CERTIFICATE.to_json(), **damage})


def test_certificates_of_versions_before_chains_are_read_and_have_no_way():
    fields = {name: value for name, value in CERTIFICATE.to_json().items() if name != "way"}
    assert Certificate.from_json(fields) == replace(CERTIFICATE, way=())


def test_of_several_maps_the_quality_is_that_of_the_one_that_predicts_worst():
    qualities = [{"r2_held_out": 0.8, "n": 1}, {"r2_held_out": 0.2, "n": 2}]
    assert worst_quality(qualities) == {"r2_held_out": 0.2, "n": 2}
