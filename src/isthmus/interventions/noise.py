"""Adds noise: the control that shows what mere damage does."""

import math
import zlib
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.core.texts import TokenBatch
from isthmus.interventions.checks import working_dtype


@dataclass(frozen=True)
class GaussianNoise:
    """Adds independent Gaussian noise at every position, h + norm · g / E‖g‖ with g ~ N(0, I).

    Every call makes a new generator from `seed` on the CPU. So activations of the same shape always
    get the same noise, on any device and whatever was called before: every step of a
    generation with a cache, for example. Other shapes, such as another padding, get other noise,
    and so do other prompts of the same shape by way of `for_batch`.

    Attributes:
        d_model: Width of the residual stream it fits.
        norm: Expected length of the noise at one position, in activation units, at least 0.
        seed: Which noise.
        depends_on_shape: Always: see `core.edits.depends_on_shape`.

    Raises:
        ShapeError: If `d_model` is below 1.
        NonFiniteError: If `norm` is negative, NaN or infinite.
    """

    d_model: int
    norm: float
    seed: int
    depends_on_shape: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.d_model < 1:
            raise ShapeError(f"noise of width {self.d_model}: expected the model's d_model")
        if not math.isfinite(self.norm) or self.norm < 0:
            raise NonFiniteError(f"noise of norm {self.norm}: expected a finite number, at least 0")

    def for_batch(self, batch: TokenBatch) -> "GaussianNoise":
        """Returns the noise of one batch, which depends on its prompts but not on its answers.

        Without it all batches of one shape get the same noise, and rows of an evaluation are not
        independent.

        Args:
            batch: Texts.

        Returns:
            Noise of the same length from another seed.
        """
        prompts = [text.token_ids[: text.n_prompt] for text in batch.texts]
        # Torch reads only the lower 32 bits of a seed.
        return replace(self, seed=self.seed ^ zlib.crc32(repr(prompts).encode()))

    def __call__(
        self, activations: Float[Tensor, "batch pos {self.d_model}"]
    ) -> Float[Tensor, "batch pos {self.d_model}"]:
        """Returns `activations` with noise added at every position.

        Args:
            activations: Residual stream, any floating-point type; left unchanged.

        Returns:
            New tensor of the same type.
        """
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(activations.shape, generator=generator)
        dtype = working_dtype(activations)
        noise = drawn.to(activations.device, dtype) * (self.norm / _expected_norm(self.d_model))
        return (activations.to(dtype) + noise).to(activations.dtype)


def _expected_norm(d_model: int) -> float:
    """Returns E‖g‖ = √2 Γ((d + 1)/2) / Γ(d/2) of a standard Gaussian."""
    return math.sqrt(2) * math.exp(math.lgamma((d_model + 1) / 2) - math.lgamma(d_model / 2))
