"""A ridge map plus an autoencoder for what it leaves over, which starts at nothing.

1. Ridge is fitted in closed form.
2. An autoencoder whose second layer starts at zero is trained on y - ridge(x).
3. The weights that do best on the selection pairs are kept, and those of the start are among them:
   on these pairs the sum is never worse than ridge with the mean of its errors added.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, ShapeError
from isthmus.maps.autoencoder import AutoencoderMap, AutoencoderSettings
from isthmus.maps.autoencoder_training import fit_autoencoder
from isthmus.maps.base import AffineMap
from isthmus.maps.fitting import OnStep, no_step
from isthmus.maps.ridge import RidgeFitter
from isthmus.maps.rows import PairedRows


@dataclass(frozen=True, eq=False)
class ResidualMap:
    """The map y = affine(x) + correction(x).

    Attributes:
        affine: What carries most.
        correction: What it leaves over.
        method: How it was made.

    Raises:
        ShapeError: If the widths of both parts differ.
    """

    affine: AffineMap
    correction: AutoencoderMap
    method: str = "autoencoder_residual"

    def __post_init__(self) -> None:
        widths = [(one.d_source, one.d_target) for one in (self.affine, self.correction)]
        if widths[0] != widths[1]:
            raise ShapeError(
                f"an affine part {widths[0][0]} → {widths[0][1]} and a correction "
                f"{widths[1][0]} → {widths[1][1]} cannot be added: fit both on the same pairs"
            )

    @property
    def d_source(self) -> int:
        """Width of the points it takes."""
        return self.affine.d_source

    @property
    def d_target(self) -> int:
        """Width of the points it returns."""
        return self.affine.d_target

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
        return self.affine(points) + self.correction(points)


def residual_settings(n_steps: int = 1000) -> AutoencoderSettings:
    """Returns how the correction is trained: standardised, from zero, with patience.

    Args:
        n_steps: Most optimiser steps, at least 1.

    Returns:
        Settings for `ResidualFitter`.
    """
    return AutoencoderSettings(
        hidden_factor=2.0,
        learning_rate=2e-3,
        schedule="cosine",
        n_steps=n_steps,
        is_standardised=True,
        starts_at_zero=True,
        patience=4,
    )


@dataclass(frozen=True)
class ResidualFitter:
    """Fits ridge and then an autoencoder on its errors.

    Attributes:
        settings: Training of the autoencoder.
    """

    settings: AutoencoderSettings = field(default_factory=residual_settings)

    def fit(
        self,
        train: PairedRows,
        selection: PairedRows,
        generator: torch.Generator,
        on_step: OnStep = no_step,
    ) -> ResidualMap:
        """Returns the sum that does best on the selection pairs.

        Args:
            train: Training pairs.
            selection: Other pairs, by which ridge's strength is chosen and training ends.
            generator: First weights and order of the pairs.
            on_step: Called after each step of the training.

        Returns:
            A map on the CPU.

        Raises:
            FitError: If there are fewer than two pairs on a side or activations never vary.
        """
        ridge = RidgeFitter().fit(train.moments, selection.moments)
        left_over = [
            PairedRows(rows.source, (rows.target - ridge(rows.source)).float())
            for rows in (train, selection)
        ]
        correction = fit_autoencoder(
            left_over[0].source,
            left_over[0].target,
            self.settings,
            generator,
            on_step,
            left_over[1],
        )
        if not isinstance(correction, AutoencoderMap):
            raise ConfigError("a correction needs settings with the ReLU: is_nonlinear=True")
        return ResidualMap(ridge, correction)
