"""Trains TopK sparse autoencoders by gradient descent.

1. Rows are centred and scaled so that their mean squared length is d_model; both are folded into
   the weights at the end, so that the autoencoder takes and returns plain activations.
2. Decoder rows start random and of norm 1, the encoder as their transpose; after every step of Adam
   the decoder rows are scaled back to norm 1.
3. A feature that was not active for `dead_after` steps is dead. The dead ones whose pre-activations
   are largest also predict what the others leave unexplained, which brings them back to life.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError, NonFiniteError
from isthmus.features.sparse_autoencoder import SparseAutoencoder, sparsest


@dataclass(frozen=True)
class TopKSettings:
    """How a TopK sparse autoencoder is built and trained.

    Source: Gao et al. 2024, arXiv 2406.04093, section 2 and appendix A; the learning rate and what
    counts as dead are for thousands of steps on ten thousands of rows, not for their billions.

    Attributes:
        k: Active features per row, at least 1.
        expansion: Features per coordinate of the activations, at least 1.
        n_steps: Steps of Adam, at least 1.
        batch_size: Rows per step, at least 1.
        learning_rate: Of Adam, above 0; it falls to zero over the last fifth of the steps.
        dead_after: Steps without being active after which a feature is dead, at least 1.
        n_revived: Dead features that help at a time, at least 1; Gao's k_aux.
        revival_weight: Weight of their loss, at least 0; Gao's α.

    Raises:
        ConfigError: If a number is outside its range.
    """

    k: int = 16
    expansion: int = 8
    n_steps: int = 1000
    batch_size: int = 1024
    learning_rate: float = 2e-3
    dead_after: int = 100
    n_revived: int = 64
    revival_weight: float = 1 / 32

    def __post_init__(self) -> None:
        counts = ("k", "expansion", "n_steps", "batch_size", "dead_after", "n_revived")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate}, expected above 0")
        if not 0 <= self.revival_weight < math.inf:
            raise ConfigError(f"revival_weight is {self.revival_weight}, expected at least 0")


@dataclass(frozen=True)
class _Weights:
    """What is trained, in scaled coordinates."""

    encoder_weight: Float[Tensor, "d_model d_feature"]
    encoder_bias: Float[Tensor, " d_feature"]
    decoder_weight: Float[Tensor, "d_feature d_model"]
    decoder_bias: Float[Tensor, " d_model"]

    @property
    def parameters(self) -> list[Tensor]:
        return [self.encoder_weight, self.encoder_bias, self.decoder_weight, self.decoder_bias]


def train_sparse_autoencoder(
    rows: Float[Tensor, "row d_model"],
    settings: TopKSettings,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> SparseAutoencoder:
    """Trains a TopK sparse autoencoder on rows held in memory.

    Minimises the mean of |x - x̂|² + revival_weight · |x - x̂ - ê|², where ê is what dead features
    make of the error.

    Source: Gao et al. 2024, arXiv 2406.04093.

    Args:
        rows: Activations, at least 2; training runs where they lie; left unchanged.
        settings: Sizes and training.
        generator: Initial weights and order of the rows.
        on_step: Called after each step with its number (from 1) and the mean squared error before
            it, relative to the variance of the rows.

    Returns:
        A float32 autoencoder on the CPU whose decoder rows have norm 1.

    Raises:
        FitError: If there are fewer than two rows or they never vary.
        ConfigError: If there are fewer features than k.
        NonFiniteError: If a row or the loss is NaN or infinite.
    """
    x, mean, scale = _scaled(rows)
    if settings.k > settings.expansion * x.shape[1]:
        raise ConfigError(
            f"k is {settings.k} of {settings.expansion * x.shape[1]} features: raise the expansion"
        )
    weights = _initial(x.shape[1], settings, generator, x.device)
    optimiser = torch.optim.Adam(weights.parameters, betas=(0.9, 0.999), eps=6.25e-10)
    idle = torch.zeros(settings.expansion * x.shape[1], device=x.device)
    for step in range(settings.n_steps):
        picked = torch.randint(
            len(x), (settings.batch_size,), generator=generator, device=generator.device
        )
        with torch.enable_grad():
            error, loss, is_active = _losses(
                weights, x[picked.to(x.device)], idle >= settings.dead_after, settings
            )
            gradients = torch.autograd.grad(loss, weights.parameters)
        if not math.isfinite(value := loss.item()):
            raise NonFiniteError(
                f"the sparse autoencoder's loss became {value} at step {step + 1}: "
                f"lower the learning rate from {settings.learning_rate:g}"
            )
        for parameter, gradient in zip(weights.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.param_groups[0]["lr"] = _rate(settings, step)
        optimiser.step()
        with torch.no_grad():
            decoder = weights.decoder_weight
            decoder.div_(decoder.norm(dim=1, keepdim=True))
        idle = torch.where(is_active, 0.0, idle + 1)
        on_step(step + 1, error)
    return _frozen(weights, mean, scale, settings.k)


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor, float]:
    """Returns centred rows of mean squared length d_model, their mean, and the scale used."""
    if not bool(torch.isfinite(rows).all()):
        raise NonFiniteError(
            "the activations hold NaN or infinity: load the model in bfloat16 or float32"
        )
    mean = rows.detach().double().mean(0)
    centred = rows.detach().double() - mean
    spread = float(centred.square().sum(1).mean()) if len(rows) > 1 else 0.0
    if spread <= 0:
        raise FitError(
            f"a sparse autoencoder needs at least 2 different rows, got {len(rows)} with variance "
            f"{spread:g}: give it more texts"
        )
    scale = math.sqrt(rows.shape[1] / spread)
    return (centred * scale).float(), mean, scale


def _initial(
    d_model: int, settings: TopKSettings, generator: torch.Generator, device: torch.device
) -> _Weights:
    n = settings.expansion * d_model
    drawn = torch.randn(n, d_model, generator=generator, device=generator.device).to(device)
    decoder = drawn / drawn.norm(dim=1, keepdim=True)
    return _Weights(
        decoder.T.clone().contiguous().requires_grad_(),
        torch.zeros(n, device=device).requires_grad_(),
        decoder.requires_grad_(),
        torch.zeros(d_model, device=device).requires_grad_(),
    )


def _losses(
    weights: _Weights,
    x: Float[Tensor, "row d_model"],
    is_dead: Bool[Tensor, " d_feature"],
    settings: TopKSettings,
) -> tuple[float, Tensor, Bool[Tensor, " d_feature"]]:
    """Returns the mean squared error, the loss to lower, and which features were active."""
    encoded = (x - weights.decoder_bias) @ weights.encoder_weight + weights.encoder_bias
    features = sparsest(encoded, settings.k)
    left = x - features @ weights.decoder_weight - weights.decoder_bias
    loss = left.square().mean()
    error = loss.item()
    n_dead = int(is_dead.sum())
    if n_dead and settings.revival_weight:
        among = sparsest(encoded[:, is_dead], min(settings.n_revived, n_dead))
        missed = left.detach() - among @ weights.decoder_weight[is_dead]
        loss = loss + settings.revival_weight * missed.square().mean()
    return error, loss, (features.detach() > 0).any(0)


def _rate(settings: TopKSettings, step: int) -> float:
    left = (settings.n_steps - step) / max(1.0, settings.n_steps / 5)
    return settings.learning_rate * min(1.0, left)


def _frozen(weights: _Weights, mean: Tensor, scale: float, k: int) -> SparseAutoencoder:
    # With x = (h - mean) · scale and unit decoder rows, features are in units of h after division.
    encoder, encoder_bias, decoder, decoder_bias = (
        parameter.detach().double() for parameter in weights.parameters
    )
    return SparseAutoencoder(
        encoder_weight=encoder.to("cpu", torch.float32),
        encoder_bias=(encoder_bias / scale).to("cpu", torch.float32),
        decoder_weight=decoder.to("cpu", torch.float32),
        decoder_bias=(decoder_bias / scale + mean).to("cpu", torch.float32),
        k=k,
    )
