"""Sparse autoencoders: activations as few features out of many.

1. Every feature has a pre-activation, an affine function of the activation.
2. Few of them become active: the k largest, those above zero, or those above a threshold.
3. The reconstruction is the decoder bias plus the active features' decoder rows.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError, NonFiniteError, ShapeError

Activation = Literal["topk", "relu", "jumprelu"]


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """The autoencoder x̂ = z W_dec + b_dec with z = act(p) and p = (x - b_dec) W_enc + b_enc.

    | activation | z |
    | --- | --- |
    | `topk` | ReLU(p) where p is among the k largest, 0 elsewhere |
    | `relu` | ReLU(p) |
    | `jumprelu` | ReLU(p) where p > threshold, 0 elsewhere |

    Source: Gao et al. 2024, arXiv 2406.04093, section 2.3, for `topk`; Rajamanoharan et al. 2024,
    arXiv 2407.14435, for `jumprelu`.

    Attributes:
        encoder_weight: W_enc, float32.
        encoder_bias: b_enc, float32.
        decoder_weight: W_dec, one row per feature, float32.
        decoder_bias: b_dec, float32.
        activation: Which features become active.
        k: How many at most, for `topk` only.
        threshold: What a pre-activation must exceed, for `jumprelu` only.
        is_centred: Whether b_dec is taken off before encoding; otherwise p = x W_enc + b_enc.

    Raises:
        ConfigError: If activation, `k` and `threshold` do not fit together.
        ShapeError: If the widths do not fit together.
        NonFiniteError: If a weight is NaN or infinite.
    """

    encoder_weight: Float[Tensor, "d_model d_feature"]
    encoder_bias: Float[Tensor, " d_feature"]
    decoder_weight: Float[Tensor, "d_feature d_model"]
    decoder_bias: Float[Tensor, " d_model"]
    activation: Activation = "topk"
    k: int | None = None
    threshold: Float[Tensor, " d_feature"] | None = None
    is_centred: bool = True

    def __post_init__(self) -> None:
        self._require_activation()
        widths = (*self.decoder_bias.shape, *self.encoder_bias.shape)
        shapes = [tuple(self.encoder_weight.shape), tuple(self.decoder_weight.shape)]
        if shapes != [widths, widths[::-1]]:
            raise ShapeError(
                f"encoder and decoder of shapes {shapes[0]} and {shapes[1]} do not fit biases of "
                f"widths {widths}: expected [d_model d_feature] and [d_feature d_model]"
            )
        if self.threshold is not None and self.threshold.shape != self.encoder_bias.shape:
            raise ShapeError(
                f"a threshold of shape {tuple(self.threshold.shape)} for {self.d_feature} features"
            )
        for name, value in self.tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(f"{name} holds NaN or infinity: train with a lower rate")

    def _require_activation(self) -> None:
        has = {"topk": self.k is not None, "jumprelu": self.threshold is not None}
        for name, is_there in has.items():
            if is_there != (self.activation == name):
                raise ConfigError(
                    f"activation {self.activation!r} with k {self.k} and "
                    f"{'a' if self.threshold is not None else 'no'} threshold: "
                    "'topk' takes a k, 'jumprelu' a threshold, 'relu' neither"
                )
        if self.k is not None and not 1 <= self.k <= len(self.encoder_bias):
            raise ConfigError(f"k is {self.k}, expected 1 to {len(self.encoder_bias)} features")

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.decoder_bias.shape[0]

    @property
    def d_feature(self) -> int:
        """How many features there are."""
        return self.encoder_bias.shape[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name."""
        found = {
            "encoder_weight": self.encoder_weight,
            "encoder_bias": self.encoder_bias,
            "decoder_weight": self.decoder_weight,
            "decoder_bias": self.decoder_bias,
        }
        return found if self.threshold is None else {**found, "threshold": self.threshold}

    def preactivations(
        self, states: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_feature"]:
        """Computes p, before any feature is left out; refuses another width (`ShapeError`).

        Args:
            states: Activations of any float dtype and on any device; left unchanged.

        Returns:
            Float32, or float64 for float64 states.
        """
        if states.ndim == 0 or states.shape[-1] != self.d_model:
            raise ShapeError(
                f"activations of shape {tuple(states.shape)}, the sparse autoencoder takes width "
                f"{self.d_model}: read them at the site that it was trained on"
            )
        x = states.to(torch.promote_types(states.dtype, torch.float32))
        if self.is_centred:
            x = x - self.decoder_bias.to(x)
        return x @ self.encoder_weight.to(x) + self.encoder_bias.to(x)

    def activate(
        self, preactivations: Float[Tensor, "*batch d_feature"]
    ) -> Float[Tensor, "*batch d_feature"]:
        """Keeps the features that become active and sets all others to zero.

        Args:
            preactivations: p, as `preactivations` returns it or changed since; left unchanged.

        Returns:
            z, at least zero everywhere.
        """
        if self.k is not None:
            return sparsest(preactivations, self.k)
        if self.threshold is not None:
            is_active = preactivations > self.threshold.to(preactivations)
            return torch.where(is_active, preactivations, 0.0).relu()
        return preactivations.relu()

    def encode(self, states: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_feature"]:
        """Returns the features' activations z; refuses another width (`ShapeError`)."""
        return self.activate(self.preactivations(states))

    def decode(
        self, features: Float[Tensor, "*batch d_feature"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Returns z W_dec + b_dec.

        Args:
            features: Activations of all features; left unchanged.

        Returns:
            Reconstructed activations, of the dtype of the features.
        """
        return features @ self.decoder_weight.to(features) + self.decoder_bias.to(features)

    def reconstruct(
        self, states: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """Returns what is left of activations after encoding and decoding; widths as `encode`."""
        return self.decode(self.encode(states))


@dataclass(frozen=True)
class ReconstructionQuality:
    """How much of some activations a sparse autoencoder keeps.

    Attributes:
        fvu: Fraction of variance unexplained, Σ|x - x̂|² / Σ|x - x̄|², x̄ the mean of these rows.
        n_active: Mean number of active features per row.
        dead_share: Share of the features that are active in none of the rows.
        n_rows: How many rows this rests on.
    """

    fvu: float
    n_active: float
    dead_share: float
    n_rows: int


def sparsest(
    preactivations: Float[Tensor, "*batch d_feature"], k: int
) -> Float[Tensor, "*batch d_feature"]:
    """Returns ReLU(p) of the k largest pre-activations of every row and zero elsewhere.

    Differentiable in the values that stay.

    Args:
        preactivations: p; left unchanged.
        k: How many, from 1 to the number of features.

    Returns:
        At most k values above zero per row.
    """
    largest = preactivations.topk(k, dim=-1)
    kept = torch.zeros_like(preactivations)
    return kept.scatter(-1, largest.indices, largest.values.relu())


def reconstruction_quality(
    autoencoder: SparseAutoencoder, rows: Float[Tensor, "row d_model"]
) -> ReconstructionQuality:
    """Measures a sparse autoencoder, usually on rows of texts that it was not trained on.

    Refuses rows of another width (`ShapeError`).

    Args:
        autoencoder: What is measured.
        rows: Activations; left unchanged.

    Returns:
        Unexplained variance, sparsity and dead features.

    Raises:
        FitError: If there are fewer than two rows or they never vary.
    """
    total = float((rows.double() - rows.double().mean(0)).square().sum()) if len(rows) else 0.0
    if len(rows) < 2 or total <= 0:
        raise FitError(
            f"quality needs at least 2 different rows, got {len(rows)} with total variation "
            f"{total:g}: hold out more texts"
        )
    error, n_active = 0.0, 0
    ever = torch.zeros(autoencoder.d_feature, dtype=torch.bool)
    for some in rows.split(4096):
        features = autoencoder.encode(some)
        error += float((autoencoder.decode(features).double() - some.double()).square().sum())
        n_active += int((features > 0).sum())
        ever |= (features > 0).any(0).cpu()
    dead_share = 1 - float(ever.float().mean())
    return ReconstructionQuality(error / total, n_active / len(rows), dead_share, len(rows))
