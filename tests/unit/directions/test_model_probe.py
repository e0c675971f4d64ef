import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.manifests import rewrite_fields
from tests.unit.directions.states import identity_of, two_classes

from isthmus.core.artifacts import write_artifact
from isthmus.core.certificate import Certificate, CertifiedNumber
from isthmus.core.errors import (
    ArtifactError,
    IdentityError,
    NonFiniteError,
    OutputError,
    ShapeError,
    SiteError,
)
from isthmus.core.sites import Site, Stream
from isthmus.directions import ModelProbe, fit_probe, load_probe, save_probe
from isthmus.directions.probe import Probe

MODEL = identity_of("small", 5)
SITES = (Site(3), Site(0, Stream.RESID_PRE))
CERTIFICATE = Certificate(
    source=identity_of("other", 7),
    target=MODEL,
    source_sites=("resid_post[1]",),
    target_site="resid_post[3], resid_pre[0]",
    map_method="ridge",
    map_quality={"r2_held_out": 0.9},
)


def a_probe(**changes) -> ModelProbe:
    positive, negative, _ = two_classes(n_positions=1, d_model=10)
    made = ModelProbe(
        fit_probe(positive[:, 0], negative[:, 0]),
        SITES,
        "last:1",
        MODEL,
        {"auroc": CertifiedNumber(0.9, 0.8, 1.0, 24)},
        {"seed": 0},
    )
    return replace(made, **changes)


@pytest.mark.parametrize("certificate", [None, CERTIFICATE])
def test_a_loaded_probe_is_the_saved_probe_and_scores_bit_for_bit_alike(tmp_path, certificate):
    saved = a_probe(certificate=certificate)
    save_probe(tmp_path / "probe", saved)
    loaded = load_probe(tmp_path / "probe")
    for name in ("sites", "positions", "model", "held_out", "provenance", "certificate"):
        assert getattr(loaded, name) == getattr(saved, name)
    states = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.probe.scores(states), saved.probe.scores(states))


def test_a_probe_replaces_a_probe_and_nothing_else(tmp_path: Path):
    save_probe(tmp_path / "one", a_probe())
    save_probe(tmp_path / "one", a_probe(positions="prompt"))
    assert load_probe(tmp_path / "one").positions == "prompt"
    write_artifact(tmp_path / "map", "activation_map", {}, {})
    with pytest.raises(OutputError, match="not an isthmus probe"):
        save_probe(tmp_path / "map", a_probe())
    with pytest.raises(ArtifactError, match="expected probe"):
        load_probe(tmp_path / "map")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"threshold": "high"}, ArtifactError),
        ({"threshold": math.inf}, NonFiniteError),
        ({"sites": ["resid_post[9]"]}, ArtifactError),
        ({"sites": ["resid_post[1]"]}, ShapeError),
        ({"model": {"name": "small"}}, ArtifactError),
        ({"held_out": {"auroc": {"value": 1.0}}}, ArtifactError),
        ({"certificate": {}}, ArtifactError),
        ({"certificate": replace(CERTIFICATE, target=CERTIFICATE.source).to_json()}, IdentityError),
        (
            {"certificate": replace(CERTIFICATE, target_site="resid_post[3]").to_json()},
            ArtifactError,
        ),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else one.__name__,
)
def test_a_folder_that_is_not_a_whole_probe_is_refused(tmp_path: Path, changes, error):
    save_probe(tmp_path / "probe", a_probe())
    rewrite_fields(tmp_path / "probe", lambda fields: fields.update(changes))
    with pytest.raises(error):
        load_probe(tmp_path / "probe")


def test_a_threshold_that_was_edited_by_hand_is_noticed(tmp_path: Path):
    save_probe(tmp_path / "probe", a_probe())
    rewrite_fields(tmp_path / "probe", lambda f: f.update(threshold=0.0), keeps_hash=True)
    with pytest.raises(ArtifactError):
        load_probe(tmp_path / "probe")


def test_what_does_not_fit_its_model_is_refused():
    with pytest.raises(SiteError, match="layers 0 to 3"):
        a_probe(sites=(Site(3), Site(4)))
    with pytest.raises(ShapeError, match="learn it there"):
        a_probe(sites=(Site(3),))
    with pytest.raises(NonFiniteError, match="threshold nan"):
        a_probe(probe=Probe(a_probe().probe.unit_direction, math.nan))
