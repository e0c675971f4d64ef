"""Sparse autoencoders: what they are, how they are trained, and their files."""

from isthmus.features.files import (
    FittedFeatures,
    SaeLensFolder,
    load_features,
    read_sae_lens,
    save_features,
)
from isthmus.features.sparse_autoencoder import (
    ReconstructionQuality,
    SparseAutoencoder,
    reconstruction_quality,
)
from isthmus.features.training import TopKSettings, train_sparse_autoencoder

__all__ = [
    "FittedFeatures",
    "ReconstructionQuality",
    "SaeLensFolder",
    "SparseAutoencoder",
    "TopKSettings",
    "load_features",
    "read_sae_lens",
    "reconstruction_quality",
    "save_features",
    "train_sparse_autoencoder",
]
