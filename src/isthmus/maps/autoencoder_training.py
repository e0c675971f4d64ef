"""Trains two-layer maps by gradient descent: the paper's two, and one that converges.

1. y = ReLU(x W1 + b1) W2 + b2, with a bottleneck of about √(d_source d_target); without the ReLU
   the two layers multiply out to one affine map.
2. Batches of paired tokens are drawn without replacement; AdamW lowers the mean squared error.
3. Inputs and outputs may be standardised per coordinate for training; the scales are folded into
   the weights at the end, so that the map takes and returns plain activations.
4. With patience, every hundred steps look at the selection pairs; the best weights are kept.
"""

import itertools
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
from isthmus.maps.rows import PairedRows, Pairs

STEPS_PER_LOOK = 100
"""Steps between two looks at the selection pairs."""


@dataclass(frozen=True)
class _Standard:
    """Mean and deviation of every coordinate; 0 and 1 where nothing is standardised."""

    mean: Float[Tensor, " d_model"]
    scale: Float[Tensor, " d_model"]

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
    if len(source) != len(target):
        raise ShapeError(
            f"{len(source)} source rows and {len(target)} target rows are not pairs: "
            "align the tokens first"
        )
    pairs = PairedRows(source.detach(), target.detach().to(source.device))
    return train_autoencoder(pairs, settings, generator, on_step, selection)


def train_autoencoder(
    pairs: Pairs,
    settings: AutoencoderSettings,
    generator: torch.Generator,
    on_step: OnStep = no_step,
    selection: Pairs | None = None,
) -> AutoencoderMap | AffineMap:
    """Trains a two-layer map on pairs wherever they lie; only batches of them are in memory.

    Refuses what `fit_autoencoder` refuses. With pairs in memory both give the same map.

    Args:
        pairs: At least 2 pairs; training runs where their batches lie.
        settings: Architecture and training.
        generator: Initial weights and order of the pairs.
        on_step: Called after each step with its number (from 1) and the loss before it.
        selection: Other pairs, by which settings with patience end the training.

    Returns:
        A float32 map on the CPU, as `fit_autoencoder` returns it.

    Raises:
        NonFiniteError: If the loss becomes NaN or infinite.
    """
    inputs, outputs = _standards(pairs, is_standardised=settings.is_standardised)
    device = inputs.mean.device
    layers = _initial_layers((pairs.d_source, pairs.d_target), device, settings, generator)
    trained = layers.parameters
    optimiser = torch.optim.AdamW(trained, weight_decay=settings.weight_decay)
    n_steps = settings.n_steps or settings.n_epochs * math.ceil(pairs.n_rows / settings.batch_size)
    watch = _Watch(layers, (inputs, outputs), settings, selection)
    for step, (x, y) in enumerate(_batches(pairs, n_steps, settings.batch_size, generator)):
        if watch.is_over(step):
            break
        with torch.enable_grad():
            loss = layers.loss(
                inputs.apply(x.float()),
                outputs.apply(y.float()),
                is_nonlinear=settings.is_nonlinear,
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


def _standards(pairs: Pairs, *, is_standardised: bool) -> tuple[_Standard, _Standard]:
    """Reads all pairs once: refuses those that cannot be trained on, and finds their scales."""
    if pairs.n_rows < 2:
        raise FitError(
            f"an autoencoder needs at least 2 pairs, got {pairs.n_rows}: give it more texts"
        )
    n = 0
    sides: list[tuple[Tensor, Tensor]] = []
    for batch in pairs.batches():
        require_finite(
            dict(zip(("source", "target"), batch, strict=True)),
            "the training data",
            "load the model in bfloat16 or float32, or drop the texts that cause it",
        )
        found = [torch.var_mean(side.double(), 0, correction=0) for side in batch]
        k, n = len(batch[0]), n + len(batch[0])
        sides = sides or [(torch.zeros_like(mean), mean) for _, mean in found]
        # Chan's update: sums of squares about the means of all pairs so far.
        sides = [
            (
                squares + k * variance + k * (n - k) / n * (other - mean).square(),
                mean + (other - mean) * k / n,
            )
            for (squares, mean), (variance, other) in zip(sides, found, strict=True)
        ]
    if not bool(sides[0][0].any()):
        raise FitError(
            f"an autoencoder was given {n} equal source activations: give it different texts"
        )
    first, second = (_standard(squares, mean, n, is_standardised) for squares, mean in sides)
    return first, second


def _standard(squares: Tensor, mean: Tensor, n: int, is_standardised: bool) -> _Standard:  # noqa: FBT001
    if not is_standardised:
        return _Standard(torch.zeros_like(mean).float(), torch.ones_like(mean).float())
    deviation = (squares / (n - 1)).sqrt()
    # A coordinate that never varies keeps its scale: dividing by its deviation would give NaN.
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return _Standard(mean.float(), scale.float())


class _Watch:
    """Looks at the selection pairs and remembers the weights that did best on them."""

    def __init__(
        self,
        layers: _Layers,
        standards: tuple[_Standard, _Standard],
        settings: AutoencoderSettings,
        selection: Pairs | None,
    ) -> None:
        self.layers, self.settings, self.standards = layers, settings, standards
        self.pairs = None if settings.patience is None else selection
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
        loss = 0.0
        with torch.no_grad():
            for batch in self.pairs.batches():
                x, y = (
                    one.apply(side.detach().to(one.mean))
                    for one, side in zip(self.standards, batch, strict=True)
                )
                mean = self.layers.loss(x, y, is_nonlinear=self.settings.is_nonlinear)
                loss += float(mean) * len(x) / self.pairs.n_rows
        self.n_without_progress += 1
        if loss < self.least:
            self.least, self.n_without_progress = loss, 0
            self.kept = [one.detach().clone() for one in self.layers.parameters]

    def best(self) -> _Layers:
        """Returns the best weights, or the last where nobody looked."""
        self._look()
        return _Layers(*self.kept) if self.kept else self.layers


def _initial_layers(
    widths: tuple[int, int],
    device: torch.device,
    settings: AutoencoderSettings,
    generator: torch.Generator,
) -> _Layers:
    d_source, d_target = widths
    d_hidden = settings.d_hidden(d_source, d_target)

    def uniform(*shape: int, fan_in: int, factor: float = 1.0) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, device=generator.device) * 2 - 1
        return (factor * drawn / math.sqrt(fan_in)).to(device).requires_grad_()

    second = 0.0 if settings.starts_at_zero else 1.0
    return _Layers(
        uniform(d_source, d_hidden, fan_in=d_source),
        uniform(d_hidden, fan_in=d_source),
        uniform(d_hidden, d_target, fan_in=d_hidden, factor=second),
        uniform(d_target, fan_in=d_hidden, factor=second),
    )


def _batches(
    pairs: Pairs, n_steps: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    n_per_pass = math.ceil(pairs.n_rows / batch_size)
    for step in range(0, n_steps, n_per_pass):
        yield from itertools.islice(pairs.shuffled(batch_size, generator), n_steps - step)


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
