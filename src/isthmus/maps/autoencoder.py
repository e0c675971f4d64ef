"""The two-layer map y = ReLU(x W1 + b1) W2 + b2 and how it can be trained."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, ShapeError
from isthmus.maps.base import require_finite, require_width, wide


@dataclass(frozen=True)
class AutoencoderSettings:
    """How a two-layer map is built and trained.

    Attributes:
        is_nonlinear: Whether there is a ReLU between the layers.
        hidden_factor: Width of the bottleneck in units of √(d_source d_target), above 0.
        learning_rate: Peak rate of AdamW, above 0.
        schedule: `constant`, or `cosine` down to zero.
        n_epochs: Passes over the pairs, when `n_steps` is not given; at least 1.
        n_steps: Optimiser steps, however many passes they take.
        batch_size: Pairs of tokens per step, at least 1.
        is_standardised: Whether training sees every coordinate with mean 0 and deviation 1.
        weight_decay: Decoupled decay of AdamW, at least 0.
        starts_at_zero: Whether the second layer starts at zero, so that training starts from a map
            that returns one point; with standardised outputs their mean.
        patience: With selection pairs, how many looks at them without progress end the training;
            the weights of the best look are kept. Without a number nothing looks.

    Raises:
        ConfigError: If a number is outside its range.
    """

    is_nonlinear: bool = True
    hidden_factor: float = 1.0
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    n_epochs: int = 3
    n_steps: int | None = None
    batch_size: int = 1024
    is_standardised: bool = False
    weight_decay: float = 0.01
    starts_at_zero: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        ranges = {
            "hidden_factor": 0 < self.hidden_factor < math.inf,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "n_epochs": self.n_epochs >= 1,
            "n_steps": self.n_steps is None or self.n_steps >= 1,
            "batch_size": self.batch_size >= 1,
            "patience": self.patience is None or self.patience >= 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
        }
        for name, is_inside in ranges.items():
            if not is_inside:
                raise ConfigError(
                    f"autoencoder setting {name} = {getattr(self, name)} is out of range: "
                    "rates, factors and counts are above 0, weight_decay is not below 0"
                )

    @classmethod
    def paper(cls) -> "AutoencoderSettings":
        """Returns the paper's ReLU autoencoder: plain activations, AdamW at 1e-4, 3 epochs.

        The paper steps on 64 texts at a time and does not say how many tokens these are, nor which
        weight decay it used: 1,024 tokens and AdamW's usual 0.01 stand in.

        Source: arXiv 2503.04429, §3.3 and Table 22.
        """
        return cls()

    @classmethod
    def paper_affine(cls) -> "AutoencoderSettings":
        """Returns the paper's affine map: the same two layers and training, without the ReLU.

        Source: arXiv 2503.04429, §3.3 and Table 22.
        """
        return cls(is_nonlinear=False)

    @classmethod
    def well_trained(cls, n_steps: int = 1500) -> "AutoencoderSettings":
        """Returns a ReLU autoencoder that converges: standardised, twice as wide, 2e-3 with cosine.

        With selection pairs the weights that do best on them are kept.

        Args:
            n_steps: Optimiser steps, at least 1.

        Returns:
            Settings that come close to what such a map can do on a few hundred thousand pairs.
        """
        return cls(
            hidden_factor=2.0,
            learning_rate=2e-3,
            schedule="cosine",
            n_steps=n_steps,
            is_standardised=True,
            patience=6,
        )

    def d_hidden(self, d_source: int, d_target: int) -> int:
        """Computes the width of the bottleneck, ⌊hidden_factor · √(d_source d_target)⌋.

        Args:
            d_source: Width of the source activations.
            d_target: Width of the target activations.

        Returns:
            The width, at least 1.
        """
        return max(1, int(self.hidden_factor * math.sqrt(d_source * d_target)))


@dataclass(frozen=True, eq=False)
class AutoencoderMap:
    """The map y = ReLU((x - source_mean) W1 + b1) W2 + b2.

    Source: arXiv 2503.04429, §3.3.

    Attributes:
        source_mean: What is subtracted first, float32; zero unless inputs were standardised.
        encoder_weight: W1, float32.
        encoder_bias: b1, float32.
        decoder_weight: W2, float32.
        decoder_bias: b2, float32.
        method: How it was made.

    Raises:
        ShapeError: If the layers do not fit together.
        NonFiniteError: If a value is NaN or infinite.
    """

    source_mean: Float[Tensor, " d_source"]
    encoder_weight: Float[Tensor, "d_source d_hidden"]
    encoder_bias: Float[Tensor, " d_hidden"]
    decoder_weight: Float[Tensor, "d_hidden d_target"]
    decoder_bias: Float[Tensor, " d_target"]
    method: str = "autoencoder"

    def __post_init__(self) -> None:
        encoder = (*self.source_mean.shape, *self.encoder_bias.shape)
        decoder = (*self.encoder_bias.shape, *self.decoder_bias.shape)
        shapes = (tuple(self.encoder_weight.shape), tuple(self.decoder_weight.shape))
        if shapes != (encoder, decoder):
            raise ShapeError(
                f"layers of shapes {shapes[0]} and {shapes[1]} do not fit biases and mean of "
                f"shapes {encoder} and {decoder}: give layers whose widths meet"
            )
        require_finite(
            {"encoder_weight": self.encoder_weight, "decoder_weight": self.decoder_weight}
            | {"encoder_bias": self.encoder_bias, "decoder_bias": self.decoder_bias}
            | {"source_mean": self.source_mean},
            f"the {self.method} map",
            "train it with a lower learning rate",
        )

    @property
    def d_source(self) -> int:
        """Width of the points it takes."""
        return self.encoder_weight.shape[0]

    @property
    def d_target(self) -> int:
        """Width of the points it returns."""
        return self.decoder_weight.shape[1]

    @property
    def is_affine(self) -> bool:
        """Always false."""
        return False

    def __call__(
        self, points: Float[Tensor, "*batch d_source"]
    ) -> Float[Tensor, "*batch d_target"]:
        """Returns the image of every point; refuses points of another width (`ShapeError`).

        Args:
            points: Source activations of any float dtype and on any device; left unchanged.

        Returns:
            Target activations on the same device, float32 or, for float64 points, float64.
        """
        require_width(points, self.d_source, f"the {self.method} map")
        x = wide(points)
        x = x - self.source_mean.to(x)
        hidden = (x @ self.encoder_weight.to(x) + self.encoder_bias.to(x)).relu()
        return hidden @ self.decoder_weight.to(x) + self.decoder_bias.to(x)
