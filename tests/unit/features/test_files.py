import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.manifests import rewrite_fields
from tests.unit.directions.states import identity_of
from tests.unit.features.test_sparse_autoencoder import an_autoencoder, states

from isthmus.core.errors import ArtifactError
from isthmus.core.sites import Site, Stream
from isthmus.features import (
    FittedFeatures,
    load_features,
    read_sae_lens,
    reconstruction_quality,
    save_features,
)


def test_a_saved_autoencoder_comes_back_bit_for_bit(tmp_path: Path):
    autoencoder = an_autoencoder(None, activation="jumprelu", threshold=torch.full((12,), 0.5))
    quality = reconstruction_quality(autoencoder, states())
    fitted = FittedFeatures(autoencoder, identity_of("m", 4), Site(2), quality, {"seed": 1})
    save_features(tmp_path / "sae", fitted)
    loaded = load_features(tmp_path / "sae")
    assert (loaded.model, loaded.site, loaded.quality) == (fitted.model, fitted.site, quality)
    assert loaded.provenance == {"seed": 1}
    assert torch.equal(loaded.autoencoder.encode(states()), autoencoder.encode(states()))


def test_another_artifact_and_a_broken_one_are_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="no artifact"):
        load_features(tmp_path / "none")
    save_features(tmp_path / "sae", FittedFeatures(an_autoencoder(), identity_of("m", 4), Site(2)))
    rewrite_fields(tmp_path / "sae", lambda fields: fields.update(k=99))
    with pytest.raises(ArtifactError, match="not a whole sparse autoencoder"):
        load_features(tmp_path / "sae")


def a_folder(path: Path, config: dict[str, Any], **tensors: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(2)
    weights = {
        "W_enc": torch.randn(4, 12, generator=generator),
        "b_enc": torch.randn(12, generator=generator),
        "W_dec": torch.randn(12, 4, generator=generator),
        "b_dec": torch.randn(4, generator=generator),
    }
    path.mkdir()
    save_file(weights | tensors, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps({"d_in": 4, "d_sae": 12, **config}))
    return path


def test_the_hook_of_a_folder_becomes_a_site_where_there_is_one(tmp_path: Path):
    new = {"hook_name": "blocks.7.hook_resid_pre", "model_name": "gpt2"}
    folder = a_folder(tmp_path / "new", {"architecture": "standard", "metadata": new})
    read = read_sae_lens(folder)
    assert (read.site, read.model_name) == (Site(7, Stream.RESID_PRE), "gpt2")
    old = a_folder(tmp_path / "old", {"hook_name": "blocks.3.attn.hook_z"})
    assert (read_sae_lens(old).site, read_sae_lens(old).hook_name) == (None, "blocks.3.attn.hook_z")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "gated"}, "architecture 'gated'"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, "activation 'tanh-relu'"),
        ({"architecture": "topk"}, "names no k"),
        ({"architecture": "topk", "k": 99}, "k is 99, expected 1 to 12"),
        ({"architecture": "jumprelu"}, r"expected .*threshold"),
        ({"architecture": "standard", "normalize_activations": "layer_norm"}, "'layer_norm'"),
        ({"architecture": "standard", "reshape_activations": "hook_z"}, "'hook_z'"),
        ({"architecture": "standard", "finetuning_scaling_factor": True}, "scaling_factor = True"),
    ],
)
def test_what_would_give_other_numbers_than_sae_lens_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
):
    with pytest.raises(ArtifactError, match=message):
        read_sae_lens(a_folder(tmp_path / "sae", config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metadata": ["gpt2"]}, "metadata = .* expected an object"),
        ({"hook_name": 5}, "hook_name = 5, expected a text"),
        ({"metadata": {"model_name": ["gpt2"]}}, "model_name = .* expected a text"),
        ({"architecture": ["topk"], "k": 2}, "architecture = .* expected a text"),
        ({"architecture": "topk", "activation_fn_kwargs": [2]}, "kwargs = .* expected an object"),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": "2"}}, "k = '2', expected a whole"),
        ({"architecture": "topk", "k": True}, "k = True, expected a whole number"),
        ({"architecture": "topk", "k": 2.0}, r"k = 2\.0, expected a whole number"),
        ({"architecture": "topk", "k": 0}, "k is 0, expected 1 to 12"),
        ({"apply_b_dec_to_input": "false"}, "expected true or false"),
        ({"d_in": 5}, "d_in = 5, the weights beside it 4"),
        ({"d_sae": 13}, "d_sae = 13, the weights beside it 12"),
    ],
)
def test_a_configuration_with_values_of_another_kind_or_width_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
):
    with pytest.raises(ArtifactError, match=message):
        read_sae_lens(a_folder(tmp_path / "sae", config))


def test_null_in_a_configuration_stands_for_no_value(tmp_path: Path):
    names = ("metadata", "hook_name", "activation_fn_kwargs", "d_in", "apply_b_dec_to_input")
    read = read_sae_lens(a_folder(tmp_path / "sae", dict.fromkeys(names)))
    assert (read.site, read.autoencoder.is_centred) == (None, True)


def test_an_incomplete_folder_and_unknown_tensors_are_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="no file"):
        read_sae_lens(tmp_path)
    extra = a_folder(tmp_path / "extra", {"architecture": "standard"}, r_mag=torch.ones(12))
    with pytest.raises(ArtifactError, match=r"holds .*r_mag"):
        read_sae_lens(extra)
    ones = a_folder(tmp_path / "ones", {}, scaling_factor=torch.ones(12))
    assert read_sae_lens(ones).autoencoder.activation == "relu"
    (extra / "sae_weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match="incomplete"):
        read_sae_lens(extra)
