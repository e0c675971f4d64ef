"""Trains two-layer maps by gradient descent: the paper's two, and one that converges.

1. y = ReLU(x W1 + b1) W2 + b2, with a bottleneck of about √(d_source d_target); without the ReLU
   the two layers multiply out to one affine map.
2. Batches of paired tokens are drawn without replacement; AdamW lowers the mean squared error.
3. Inputs and outputs may be standardised per coordinate for training; the scales are folded into
   the weights at the end, so that the map takes and returns plain activations.
4. With patience, every hundred steps look at the selection pairs; the best weights are kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError, NonFiniteError, ShapeError
from isthmus.maps.autoencoder import AutoencoderMap, AutoencoderSettings
from isthmus.maps.base import AffineMap, affine_from_fit, require_finite
from isthmus.maps.fitting import OnStep, no_step
from isthmus.maps.rows import PairedRows

STEPS_PER_LOOK = 100
"""Steps between two looks at the selection pairs."""


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
    on_step: OnStep = no_step,
    selection: PairedRows | None = None,
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
        selection: Other pairs, by which settings with patience end the training.

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
    watch = _Watch(layers, (inputs, outputs), settings, selection)
    for step, batch in enumerate(_batches(len(x), n_steps, settings.batch_size, generator)):
        if watch.is_over(step):
            break
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
    return _frozen(watch.best(), inputs, outputs, is_nonlinear=settings.is_nonlinear)


class _Watch:
    """Looks at the selection pairs and remembers the weights that did best on them."""

    def __init__(
        self,
        layers: _Layers,
        standards: tuple[_Standard, _Standard],
        settings: AutoencoderSettings,
        selection: PairedRows | None,
    ) -> None:
        self.layers, self.settings = layers, settings
        self.pairs: tuple[Tensor, Tensor] | None = None
        if selection is not None and settings.patience is not None:
            sides = (selection.source, selection.target)
            x, y = (
                one.apply(side.detach().to(one.mean))
                for one, side in zip(standards, sides, strict=True)
            )
            self.pairs = (x, y)
        self.least, self.n_without_progress = math.inf, 0
        self.kept: list[Tensor] = []

    def is_over(self, step: int) -> bool:
        """Says before a step whether progress has ended."""
        if self.pairs is None or step % STEPS_PER_LOOK:
            return False
        self._look()
        return self.n_without_progress >= (self.settings.patience or 0)

    def _look(self) -> None:
        if self.pairs is None:
            return
        with torch.no_grad():
            loss = float(self.layers.loss(*self.pairs, is_nonlinear=self.settings.is_nonlinear))
        self.n_without_progress += 1
        if loss < self.least:
            self.least, self.n_without_progress = loss, 0
            self.kept = [one.detach().clone() for one in self.layers.parameters]

    def best(self) -> _Layers:
        """Returns the best weights, or the last where nobody looked."""
        self._look()
        return _Layers(*self.kept) if self.kept else self.layers


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

    def uniform(*shape: int, fan_in: int, factor: float = 1.0) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, device=generator.device) * 2 - 1
        return (factor * drawn / math.sqrt(fan_in)).to(x.device).requires_grad_()

    second = 0.0 if settings.starts_at_zero else 1.0
    return _Layers(
        uniform(d_source, d_hidden, fan_in=d_source),
        uniform(d_hidden, fan_in=d_source),
        uniform(d_hidden, d_target, fan_in=d_hidden, factor=second),
        uniform(d_target, fan_in=d_hidden, factor=second),
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
