import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.manifests import rewrite_fields
from tests.unit.maps.pairs import identity_of, linear_pairs, random_weight, seeded

from isthmus.core.artifacts import sha256_of_file, write_artifact
from isthmus.core.errors import ArtifactError, NonFiniteError, OutputError, ShapeError, SiteError
from isthmus.core.sites import Site, Stream
from isthmus.maps import (
    ActivationMap,
    AffineMap,
    AutoencoderSettings,
    FittedMap,
    KernelMap,
    KernelRidgeFitter,
    MapQuality,
    PairedRows,
    ResidualFitter,
    fit_autoencoder,
    identity_map,
    load_map,
    save_map,
)
from isthmus.maps.residual import residual_settings

SITES = (Site(2), Site(0, Stream.MLP_OUT))


def an_autoencoder() -> ActivationMap:
    x, y = linear_pairs(20, random_weight(6, 4))
    return fit_autoencoder(x.float(), y.float(), AutoencoderSettings(n_steps=2), seeded())


def an_affine_map() -> AffineMap:
    weight = random_weight(6, 4).float()
    return AffineMap(weight, torch.ones(6), torch.ones(4), "ridge", {"strength": 0.1})


def a_kernel_map() -> ActivationMap:
    rows = PairedRows(*linear_pairs(30, random_weight(6, 4)))
    return KernelRidgeFitter(n_landmarks=10).fit(rows, rows, seeded())


def a_residual_map() -> ActivationMap:
    x, y = linear_pairs(30, random_weight(6, 4))
    rows = PairedRows(x.float(), y.float())
    return ResidualFitter(residual_settings(n_steps=3)).fit(rows, rows, seeded())


def fitted_map(activation_map: ActivationMap) -> FittedMap:
    return FittedMap(
        map=activation_map,
        source=identity_of("small", 3),
        target=identity_of("large", 4),
        source_sites=SITES,
        target_site=Site(1),
        quality=MapQuality(0.9, 0.1, 100, 20),
        provenance={"pairing": "character_end", "seed": 0},
    )


@pytest.mark.parametrize(
    "make",
    [
        an_affine_map,
        an_autoencoder,
        a_kernel_map,
        a_residual_map,
        lambda: identity_map(6, 4),
    ],
)
def test_a_loaded_map_is_the_saved_map(tmp_path: Path, make: Callable[[], ActivationMap]):
    saved = fitted_map(make())
    save_map(tmp_path / "map", saved)
    loaded = load_map(tmp_path / "map")
    points = torch.randn(50, 6, generator=seeded())
    assert torch.equal(loaded.map(points), saved.map(points))
    for name in ("source", "target", "source_sites", "target_site", "quality", "provenance"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert type(loaded.map) is type(saved.map)
    assert loaded.map.method == saved.map.method


def test_what_a_fit_chose_survives_saving(tmp_path: Path):
    save_map(tmp_path / "map", fitted_map(an_affine_map()))
    loaded = load_map(tmp_path / "map").map
    assert isinstance(loaded, AffineMap)
    assert loaded.details == {"strength": 0.1}


def test_what_a_kernel_map_chose_survives_saving(tmp_path: Path):
    made = a_kernel_map()
    save_map(tmp_path / "map", fitted_map(made))
    loaded = load_map(tmp_path / "map").map
    assert isinstance(made, KernelMap)
    assert isinstance(loaded, KernelMap)
    assert (loaded.details, loaded.gamma) == (made.details, made.gamma)


def test_means_that_share_memory_can_be_saved(tmp_path: Path):
    zeros = torch.zeros(6)
    save_map(
        tmp_path / "map", fitted_map(AffineMap(torch.zeros(6, 4), zeros, zeros[:4], "constant"))
    )
    assert load_map(tmp_path / "map").map.d_target == 4


def test_a_map_is_replaced_but_nothing_else_is(tmp_path: Path):
    save_map(tmp_path / "map", fitted_map(an_affine_map()))
    save_map(tmp_path / "map", fitted_map(an_autoencoder()))
    assert not load_map(tmp_path / "map").map.is_affine
    write_artifact(tmp_path / "other", "direction", {}, {})
    with pytest.raises(OutputError, match="not an isthmus activation_map"):
        save_map(tmp_path / "other", fitted_map(an_affine_map()))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source_sites": (Site(0),)}, ShapeError, "a map 6 → 4 does not fit 1 site"),
        ({"target": identity_of("large", 5)}, ShapeError, "need 6 → 5"),
        ({"source_sites": (Site(0), Site(9))}, SiteError, "layers 0 to 3"),
        ({"source_sites": (Site(0), Site(0))}, SiteError, "named twice"),
        ({"source_sites": ()}, SiteError, "no site given"),
        ({"target_site": Site(4)}, SiteError, "layers 0 to 3"),
    ],
)
def test_maps_that_do_not_fit_models_and_sites_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        replace(fitted_map(an_affine_map()), **changes)


def edit_fields(folder: Path, changes: dict[str, Any]) -> None:
    def change(fields: dict[str, Any]) -> None:
        for name, value in changes.items():
            fields[name] = value
            if value is None:
                del fields[name]

    rewrite_fields(folder, change)


@pytest.mark.parametrize(
    "changes",
    [
        {"form": "spline"},
        {"method": None},
        {"quality": None},
        {"quality": {"r2": 1.0}},
        {"source": {"name": "small"}},
        {"source_sites": ["resid_post[2]", "resid_post[17]"]},
        {"source_sites": [None]},
        {"target_site": "nowhere[0]"},
        {"form": "autoencoder"},
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, changes: dict[str, Any]):
    save_map(tmp_path / "map", fitted_map(an_affine_map()))
    edit_fields(tmp_path / "map", changes)
    with pytest.raises(ArtifactError):
        load_map(tmp_path / "map")


def test_a_manifest_whose_widths_do_not_fit_is_refused(tmp_path: Path):
    save_map(tmp_path / "map", fitted_map(an_affine_map()))
    edit_fields(tmp_path / "map", {"source_sites": ["resid_post[2]"]})
    with pytest.raises(ShapeError, match="6 → 4 does not fit 1 site"):
        load_map(tmp_path / "map")


def test_damaged_tensors_are_refused(tmp_path: Path):
    save_map(tmp_path / "map", fitted_map(an_affine_map()))
    tensors_path = tmp_path / "map" / "tensors.safetensors"
    content = tensors_path.read_bytes()
    tensors_path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="recorded hash"):
        load_map(tmp_path / "map")
    tensors_path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load_map(tmp_path / "map")
    with pytest.raises(ArtifactError, match="no artifact"):
        load_map(tmp_path / "nothing")


def test_nan_in_a_file_is_refused(tmp_path: Path):
    folder = tmp_path / "map"
    save_map(folder, fitted_map(an_affine_map()))
    tensors = load_file(folder / "tensors.safetensors")
    tensors["weight"] = tensors["weight"] * torch.nan
    save_file(tensors, folder / "tensors.safetensors")
    manifest = json.loads((folder / "artifact.json").read_text())
    manifest["tensors_sha256"] = sha256_of_file(folder / "tensors.safetensors")
    (folder / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(NonFiniteError, match="24 NaN"):
        load_map(folder)


def test_a_map_without_a_file_format_is_refused(tmp_path: Path):
    class Doubling:
        d_source, d_target, method, is_affine = 6, 4, "doubling", False

        def __call__(self, points: torch.Tensor) -> torch.Tensor:
            return 2 * points[..., :4]

    with pytest.raises(ArtifactError, match="Doubling has no file format"):
        save_map(tmp_path / "map", fitted_map(Doubling()))
