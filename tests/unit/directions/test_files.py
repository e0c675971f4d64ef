from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.manifests import rewrite_fields
from tests.unit.directions.states import a_direction, identity_of

from isthmus.core.artifacts import write_artifact
from isthmus.core.errors import ArtifactError, OutputError, ShapeError
from isthmus.core.sites import Site, Stream
from isthmus.directions import load_direction, save_direction

SITES = (Site(3), Site(0, Stream.MLP_OUT))


def edit_fields(folder: Path, changes: dict[str, Any]) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields |= changes
        for name in [name for name, value in fields.items() if value is None]:
            del fields[name]

    rewrite_fields(folder, change)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_loaded_direction_is_the_saved_direction(tmp_path: Path, pooled):
    saved = a_direction(*SITES, pooled=pooled)
    save_direction(tmp_path / "direction", saved)
    loaded = load_direction(tmp_path / "direction")
    for name in ("sites", "model", "method", "positions", "pooled", "provenance"):
        assert getattr(loaded, name) == getattr(saved, name)
    for site in SITES:
        for name, value in saved.at(site).tensors.items():
            assert torch.equal(loaded.at(site).tensors[name], value)


def test_states_that_share_memory_can_be_saved(tmp_path: Path):
    one = a_direction(Site(0)).at(Site(0))
    shared = replace(one, negative_mean=one.negative_states[0], positive_mean=one.vectors)
    save_direction(tmp_path / "direction", replace(a_direction(Site(0)), by_site={Site(0): shared}))
    loaded = load_direction(tmp_path / "direction").at(Site(0))
    assert torch.equal(loaded.positive_mean, loaded.vectors)


def test_a_direction_replaces_a_direction_and_nothing_else(tmp_path: Path):
    save_direction(tmp_path / "one", a_direction(Site(0)))
    save_direction(tmp_path / "one", a_direction(Site(1)))
    assert load_direction(tmp_path / "one").sites == (Site(1),)
    write_artifact(tmp_path / "map", "activation_map", {}, {})
    with pytest.raises(OutputError, match="not an isthmus direction"):
        save_direction(tmp_path / "map", a_direction(Site(0)))
    with pytest.raises(ArtifactError, match="is of kind activation_map, expected direction"):
        load_direction(tmp_path / "map")


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": ["resid_post[3]", "resid_post[1]"]},
        {"sites": ["resid_post[9]"]},
        {"sites": []},
        {"model": {"name": "small"}},
        {"model": {**identity_of("small", 5).to_json(), "n_layers": "4"}},
        {"method": None},
        {"provenance": None},
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, changes: dict[str, Any]):
    save_direction(tmp_path / "direction", a_direction(*SITES))
    edit_fields(tmp_path / "direction", changes)
    with pytest.raises(ArtifactError):
        load_direction(tmp_path / "direction")


def test_a_manifest_that_does_not_fit_its_tensors_is_refused(tmp_path: Path):
    save_direction(tmp_path / "direction", a_direction(*SITES))
    edit_fields(tmp_path / "direction", {"pooled": True})
    with pytest.raises(ShapeError, match="a pooled direction has one position, got 2"):
        load_direction(tmp_path / "direction")


def test_damaged_tensors_are_refused(tmp_path: Path):
    save_direction(tmp_path / "direction", a_direction(*SITES))
    tensors_path = tmp_path / "direction" / "tensors.safetensors"
    tensors_path.write_bytes(tensors_path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="recorded hash"):
        load_direction(tmp_path / "direction")
    with pytest.raises(ArtifactError, match="no artifact"):
        load_direction(tmp_path / "nothing")
