"""Similarity of texts by sentence embeddings, where the package for them is installed."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from isthmus.core.errors import ConfigError, DataError

PACKAGE = "sentence_transformers"


def can_embed() -> bool:
    """Says whether the package that loads sentence embedders is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def embedding_similarity(
    folder: str | Path, texts: Sequence[str], references: Sequence[str]
) -> Float[np.ndarray, " text"]:
    """Measures how alike texts are in meaning: the cosine of their sentence embeddings.

    Args:
        folder: Local folder of a sentence-transformers model; nothing is downloaded.
        texts: What was written.
        references: What it is compared with, one per text.

    Returns:
        One number per text, from -1 to 1.

    Raises:
        ConfigError: If the package is not installed or the folder does not exist.
        DataError: If there are no texts, or not as many references.
    """
    if len(texts) != len(references) or not texts:
        raise DataError(
            f"{len(texts)} texts and {len(references)} references: give one per text, at least one"
        )
    if not Path(folder).is_dir():
        raise ConfigError(f"no folder {folder}: name the folder of a sentence-transformers model")
    if not can_embed():
        raise ConfigError(
            f"embeddings of {folder} need sentence-transformers, which is not installed: "
            "pip install sentence-transformers, or leave the embedder out"
        )
    package = importlib.import_module(PACKAGE)
    embedder = package.SentenceTransformer(str(folder), local_files_only=True)
    ours, theirs = (
        np.asarray(embedder.encode(list(side), normalize_embeddings=True), dtype=np.float64)
        for side in (texts, references)
    )
    cosines: Float[np.ndarray, " text"] = np.clip((ours * theirs).sum(axis=1), -1.0, 1.0)
    return cosines
