"""Two-layer maps trained by gradient descent: the paper's two, and one trained to convergence.

1. y = ReLU(x W1 + b1) W2 + b2, with a bottleneck of about √(d_source d_target); without the ReLU
   the two layers multiply out to one affine map.
2. Batches of paired tokens are drawn without replacement; AdamW lowers the mean squared error.
3. Inputs and outputs may be standardised per coordinate for training; the scales are folded into
   the weights at the end, so that the map takes and returns plain activations.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError, NonFiniteError, ShapeError
from isthmus.maps.base import AffineMap, affine_from_fit, require_finite, require_width, wide


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

    def __post_init__(self) -> None:
        ranges = {
            "hidden_factor": 0 < self.hidden_factor < math.inf,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "n_epochs": self.n_epochs >= 1,
            "n_steps": self.n_steps is None or self.n_steps >= 1,
            "batch_size": self.batch_size >= 1,
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


@dataclass(frozen=True)
class _Standard:
    """Mean and deviation of every coordinate; 0 and 1 where nothing is standardised."""

    mean: Float[Tensor, " d_model"]
    scale: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, rows: Tensor, *, is_standardised: bool) -> "_Standard":
        if not is_standardised:
            return cls(torch.zeros_like(rows[0]), torch.ones_like(rows[0]))
        deviation, mean = torch.std_mean(rows.double(), 0)
        # A coordinate that never varies keeps its scale: dividing by its deviation would give NaN.
        scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        return cls(mean.float(), scale.float())

    def apply(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.scale


@dataclass(frozen=True)
class _Layers:
    """The trained parameters, in standardised coordinates."""

    encoder_weight: Float[Tensor, "d_source d_hidden"]
    encoder_bias: Float[Tensor, " d_hidden"]
    decoder_weight: Float[Tensor, "d_hidden d_target"]
    decoder_bias: Float[Tensor, " d_target"]

    @property
    def parameters(self) -> list[Tensor]:
        return [self.encoder_weight, self.encoder_bias, self.decoder_weight, self.decoder_bias]

    def loss(self, x: Tensor, y: Tensor, *, is_nonlinear: bool) -> Tensor:
        hidden = x @ self.encoder_weight + self.encoder_bias
        hidden = hidden.relu() if is_nonlinear else hidden
        return (hidden @ self.decoder_weight + self.decoder_bias - y).square().mean()


def fit_autoencoder(
    source: Float[Tensor, "row d_source"],
    target: Float[Tensor, "row d_target"],
    settings: AutoencoderSettings,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> AutoencoderMap | AffineMap:
    """Trains a two-layer map on pairs held in memory.

    Refuses unequal numbers of rows (`ShapeError`), fewer than two pairs (`FitError`) and
    activations that are not finite (`NonFiniteError`).

    Source: arXiv 2503.04429, §3.3 and Table 22, for the settings of `paper` and `paper_affine`.

    Args:
        source: Source activations, at least 2 rows; training runs where they lie.
        target: Their target activations, row by row; left unchanged, as are the source's.
        settings: Architecture and training.
        generator: Initial weights and order of the pairs.
        on_step: Called after each step with its number (from 1) and the loss before it.

    Returns:
        A float32 map on the CPU: an `AutoencoderMap` with the ReLU; without it both layers
        multiplied out to an `AffineMap` named `sgd_affine`.

    Raises:
        NonFiniteError: If the loss becomes NaN or infinite.
    """
    _require_pairs(source, target)
    x, y = source.detach().float(), target.detach().to(source.device, torch.float32)
    inputs = _Standard.of(x, is_standardised=settings.is_standardised)
    outputs = _Standard.of(y, is_standardised=settings.is_standardised)
    layers = _initial_layers(x, y, settings, generator)
    trained = layers.parameters
    optimiser = torch.optim.AdamW(trained, weight_decay=settings.weight_decay)
    n_steps = _n_steps(len(x), settings)
    for step, batch in enumerate(_batches(len(x), n_steps, settings.batch_size, generator)):
        rows = batch.to(x.device)
        with torch.enable_grad():
            loss = layers.loss(
                inputs.apply(x[rows]), outputs.apply(y[rows]), is_nonlinear=settings.is_nonlinear
            )
            gradients = torch.autograd.grad(loss, trained)
        if not math.isfinite(value := loss.item()):
            raise NonFiniteError(
                f"the autoencoder's loss became {value} at step {step + 1}: "
                f"lower the learning rate from {settings.learning_rate:g}"
            )
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        optimiser.param_groups[0]["lr"] = _rate(settings, step / n_steps)
        optimiser.step()
        on_step(step + 1, value)
    return _frozen(layers, inputs, outputs, is_nonlinear=settings.is_nonlinear)


def _require_pairs(source: Tensor, target: Tensor) -> None:
    if len(source) != len(target):
        raise ShapeError(
            f"{len(source)} source rows and {len(target)} target rows are not pairs: "
            "align the tokens first"
        )
    if len(source) < 2:
        raise FitError(
            f"an autoencoder needs at least 2 pairs, got {len(source)}: give it more texts"
        )
    require_finite(
        {"source": source, "target": target},
        "the training data",
        "load the model in bfloat16 or float32, or drop the texts that cause it",
    )


def _initial_layers(
    x: Tensor, y: Tensor, settings: AutoencoderSettings, generator: torch.Generator
) -> _Layers:
    d_source, d_target = x.shape[1], y.shape[1]
    d_hidden = settings.d_hidden(d_source, d_target)

    def uniform(*shape: int, fan_in: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, device=generator.device) * 2 - 1
        return (drawn / math.sqrt(fan_in)).to(x.device).requires_grad_()

    return _Layers(
        uniform(d_source, d_hidden, fan_in=d_source),
        uniform(d_hidden, fan_in=d_source),
        uniform(d_hidden, d_target, fan_in=d_hidden),
        uniform(d_target, fan_in=d_hidden),
    )


def _n_steps(n_rows: int, settings: AutoencoderSettings) -> int:
    return settings.n_steps or settings.n_epochs * math.ceil(n_rows / settings.batch_size)


def _batches(
    n_rows: int, n_steps: int, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    for step in range(0, n_steps, math.ceil(n_rows / batch_size)):
        order = torch.randperm(n_rows, generator=generator, device=generator.device)
        yield from order.split(batch_size)[: n_steps - step]


def _rate(settings: AutoencoderSettings, progress: float) -> float:
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _frozen(
    layers: _Layers, inputs: _Standard, outputs: _Standard, *, is_nonlinear: bool
) -> AutoencoderMap | AffineMap:
    encoder_weight, encoder_bias, decoder_weight, decoder_bias = (
        parameter.detach().double() for parameter in layers.parameters
    )
    encoder_weight = encoder_weight / inputs.scale[:, None]
    decoder_weight = decoder_weight * outputs.scale
    decoder_bias = decoder_bias * outputs.scale + outputs.mean
    if not is_nonlinear:
        offset = encoder_bias @ decoder_weight + decoder_bias
        return affine_from_fit(
            encoder_weight @ decoder_weight, inputs.mean, offset, "sgd_affine", {}
        )
    return AutoencoderMap(
        source_mean=inputs.mean.to("cpu", torch.float32),
        encoder_weight=encoder_weight.to("cpu", torch.float32),
        encoder_bias=encoder_bias.to("cpu", torch.float32),
        decoder_weight=decoder_weight.to("cpu", torch.float32),
        decoder_bias=decoder_bias.to("cpu", torch.float32),
    )
