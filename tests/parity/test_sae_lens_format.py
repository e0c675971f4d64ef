"""Folders in the format of sae-lens give what its formulas give, written out one row at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.unit.features.test_files import a_folder
from tests.unit.features.test_sparse_autoencoder import states

from isthmus.features import read_sae_lens

K = 3


def by_hand(folder: Path, row: np.ndarray, config: dict) -> tuple[np.ndarray, np.ndarray]:
    """Features and reconstruction of one row, as sae-lens 6 defines them."""
    w = {k: v.double().numpy() for k, v in load_file(folder / "sae_weights.safetensors").items()}
    centre = w["b_dec"] if config.get("apply_b_dec_to_input", True) else 0.0
    encoded = [float((row - centre) @ w["W_enc"][:, j] + w["b_enc"][j]) for j in range(12)]
    norms = np.linalg.norm(w["W_dec"], axis=1)
    is_rescaled = config.get("rescale_acts_by_decoder_norm", False)
    if is_rescaled:
        encoded = [value * norm for value, norm in zip(encoded, norms, strict=True)]
    is_topk = config["architecture"] == "topk" or config.get("activation_fn_str") == "topk"
    cut = sorted(encoded)[-K] if is_topk else -np.inf
    features = np.zeros(12)
    for j, value in enumerate(encoded):
        bar = w["threshold"][j] if "threshold" in w else -np.inf
        if value > 0 and value >= cut and value > bar:
            features[j] = value
    used = features / norms if is_rescaled else features
    return features, used @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "standard"},
        {"architecture": "standard", "apply_b_dec_to_input": False},
        {"architecture": "topk", "k": K},
        {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True},
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"architecture": "jumprelu"},
    ],
)
def test_weights_of_sae_lens_give_what_its_formulas_give(tmp_path: Path, config: dict):
    tensors = (
        {"threshold": torch.linspace(0, 2, 12)} if config["architecture"] == "jumprelu" else {}
    )
    folder = a_folder(tmp_path / "sae", config, **tensors)
    autoencoder = read_sae_lens(folder).autoencoder
    rows = states(20)
    for row, features, rebuilt in zip(
        rows, autoencoder.encode(rows), autoencoder.reconstruct(rows), strict=True
    ):
        expected, reconstruction = by_hand(folder, row.double().numpy(), config)
        np.testing.assert_allclose(features.numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(rebuilt.numpy(), reconstruction, atol=1e-5)
