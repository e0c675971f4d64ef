"""Kernel ridge regression with a Gaussian kernel, through a few landmarks.

1. Source coordinates get mean 0 and deviation 1; some training rows become landmarks.
2. With K the kernel among landmarks, φ(x) = k(x) K^-½ has inner products that approach the kernel's
   (Nyström).
3. Ridge in closed form on φ, streamed as moments. The kernel's width and the strength do best on
   the selection pairs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError, ShapeError
from isthmus.maps.base import require_finite, require_finite_rows, require_width, wide
from isthmus.maps.fitting import OnStep, no_step
from isthmus.maps.moments import PairMoments, require_fittable
from isthmus.maps.quality import fraction_unexplained
from isthmus.maps.ridge import STRENGTHS, RidgePath, require_strengths
from isthmus.maps.rows import PairedRows

_ROWS_AT_ONCE = 4096
_NOTHING = 1e-8  # directions among landmarks with less of the largest eigenvalue are rounding


@dataclass(frozen=True, eq=False)
class KernelMap:
    """The map y = Σ_j exp(-γ |x̃ - z_j|²) a_j + offset, where x̃ = (x - source_mean) / source_scale.

    Attributes:
        source_mean: What is subtracted first, float64.
        source_scale: What is divided by then, float64.
        landmarks: z, float64.
        coefficients: a, float64: their sum cancels, so that float32 would not do.
        offset: float64.
        gamma: Inverse squared width of the kernel.
        method: How it was made.
        details: Numbers that the fit chose.

    Raises:
        ShapeError: If the parts do not fit together.
        NonFiniteError: If a value is NaN or infinite.
    """

    source_mean: Float[Tensor, " d_source"]
    source_scale: Float[Tensor, " d_source"]
    landmarks: Float[Tensor, "landmark d_source"]
    coefficients: Float[Tensor, "landmark d_target"]
    offset: Float[Tensor, " d_target"]
    gamma: float
    method: str = "kernel_ridge"
    details: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = tuple(self.landmarks.shape), tuple(self.coefficients.shape)
        n = self.landmarks.shape[0]
        expected = (n, *self.source_mean.shape), (n, *self.offset.shape)
        if shapes != expected or self.source_mean.shape != self.source_scale.shape:
            raise ShapeError(
                f"landmarks and coefficients of shapes {shapes[0]} and {shapes[1]} do not fit "
                f"{expected[0]} and {expected[1]}: give one coefficient per landmark"
            )
        require_finite(
            {"landmarks": self.landmarks, "coefficients": self.coefficients}
            | {"source_mean": self.source_mean, "source_scale": self.source_scale}
            | {"offset": self.offset, "gamma": torch.tensor(self.gamma)},
            f"the {self.method} map",
            "check the activations that it was fitted on",
        )

    @property
    def d_source(self) -> int:
        """Width of the points it takes."""
        return self.landmarks.shape[1]

    @property
    def d_target(self) -> int:
        """Width of the points it returns."""
        return self.coefficients.shape[1]

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
        given = wide(points)
        x = given.reshape(-1, self.d_source).double()
        mean, scale, landmarks, coefficients, offset = (
            one.to(x.device)
            for one in (
                self.source_mean,
                self.source_scale,
                self.landmarks,
                self.coefficients,
                self.offset,
            )
        )
        made = [
            gaussian_kernel((part - mean) / scale, landmarks, self.gamma) @ coefficients + offset
            for part in x.split(_ROWS_AT_ONCE)
        ]
        return torch.cat(made).to(given.dtype).reshape(*points.shape[:-1], self.d_target)


def gaussian_kernel(
    x: Float[Tensor, "row d_model"], landmarks: Float[Tensor, "landmark d_model"], gamma: float
) -> Float[Tensor, "row landmark"]:
    """Computes exp(-γ |x - z|²) for every row and landmark.

    Args:
        x: Rows.
        landmarks: Other rows of the same width.
        gamma: Above 0.

    Returns:
        From 0 to 1.
    """
    return (-gamma * torch.cdist(x, landmarks).square()).exp()


@dataclass(frozen=True)
class KernelRidgeFitter:
    """Fits y ≈ φ(x) W + b by ridge, with φ the Nyström features of a Gaussian kernel.

    With every training row a landmark this is kernel ridge regression itself. Far from all
    landmarks the map returns its offset: it does not extrapolate.

    Source: Williams and Seeger 2001, "Using the Nyström method to speed up kernel machines".

    Attributes:
        n_landmarks: Most landmarks, at least 2.
        widths: Candidates for the kernel's width, in units of the median distance between
            landmarks; finite and above 0.
        strengths: Candidates, relative to the mean eigenvalue of the features' scatter.

    Raises:
        ConfigError: If a number is out of range.
    """

    n_landmarks: int = 512
    widths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    strengths: tuple[float, ...] = STRENGTHS

    def __post_init__(self) -> None:
        require_strengths(self.strengths)
        is_usable = self.widths and all(0 < width < float("inf") for width in self.widths)
        if self.n_landmarks < 2 or not is_usable:
            raise ConfigError(
                f"{self.n_landmarks} landmarks with widths {self.widths}: give at least 2 and "
                "widths that are finite and above 0"
            )

    def fit(
        self,
        train: PairedRows,
        selection: PairedRows,
        generator: torch.Generator,
        on_step: OnStep = no_step,
    ) -> KernelMap:
        """Returns the map whose width and strength do best on the selection pairs.

        Args:
            train: Training pairs, of which some become landmarks.
            selection: Other pairs, by which width and strength are chosen.
            generator: Which landmarks.
            on_step: Told of every width and of the fraction that it leaves unexplained.

        Returns:
            A map whose `details` hold the chosen width and strength.

        Raises:
            FitError: If there are fewer than two pairs on a side or activations never vary.
            NonFiniteError: If an activation is NaN or infinite.
        """
        require_finite_rows(train.source, train.target)
        if len(train.source) < 2:
            raise FitError(
                f"a kernel map needs at least 2 pairs, got {len(train.source)}: give more texts"
            )
        deviation, mean = torch.std_mean(train.source.double(), 0)
        if not bool(deviation.any()):
            raise FitError(
                f"a kernel map was given {len(train.source)} equal source activations: give it "
                "different texts"
            )
        scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        order = torch.randperm(len(train.source), generator=generator, device=generator.device)
        kept = order[: self.n_landmarks].to(train.source.device)
        landmarks = (train.source[kept].double() - mean) / scale
        distances = torch.pdist(landmarks)
        middle = float(distances[distances > 0].median()) if bool((distances > 0).any()) else 1.0
        best: tuple[float, KernelMap] | None = None
        for step, width in enumerate(self.widths):
            nystroem = _Nystroem(landmarks, mean, scale, 1 / (2 * (width * middle) ** 2))
            unexplained, made = self._at_width(nystroem, train, selection, width)
            on_step(step + 1, unexplained)
            best = min(best or (unexplained, made), (unexplained, made), key=lambda one: one[0])
        if best is None:
            raise ConfigError("a kernel map needs at least one width")
        return best[1]

    def _at_width(
        self, nystroem: "_Nystroem", train: PairedRows, selection: PairedRows, width: float
    ) -> tuple[float, KernelMap]:
        fitted, other = nystroem.moments(train), nystroem.moments(selection)
        require_fittable(fitted, "a kernel map")
        strength, weight = RidgePath(fitted).best_on(other, self.strengths)
        unexplained = fraction_unexplained(weight, fitted.source_mean, fitted.target_mean, other)
        made = KernelMap(
            nystroem.mean.cpu(),
            nystroem.scale.cpu(),
            nystroem.landmarks.cpu(),
            (nystroem.whitening @ weight).cpu(),
            (fitted.target_mean - fitted.source_mean @ weight).cpu(),
            nystroem.gamma,
            details={"strength": strength, "width": width},
        )
        return unexplained, made


class _Nystroem:
    """Features whose inner products approach those of the kernel."""

    def __init__(self, landmarks: Tensor, mean: Tensor, scale: Tensor, gamma: float) -> None:
        self.landmarks, self.mean, self.scale, self.gamma = landmarks, mean, scale, gamma
        among = gaussian_kernel(landmarks, landmarks, gamma)
        eigenvalues, basis = torch.linalg.eigh(among)
        kept = eigenvalues > _NOTHING * eigenvalues[-1]
        self.whitening = basis[:, kept] / eigenvalues[kept].sqrt()

    def features(self, rows: Tensor) -> Iterator[Tensor]:
        for part in rows.split(_ROWS_AT_ONCE):
            standard = (part.double() - self.mean) / self.scale
            yield gaussian_kernel(standard, self.landmarks, self.gamma) @ self.whitening

    def moments(self, rows: PairedRows) -> PairMoments:
        moments = PairMoments(self.whitening.shape[1], rows.target.shape[1])
        targets = rows.target.split(_ROWS_AT_ONCE)
        for features, target in zip(self.features(rows.source), targets, strict=True):
            moments.update(features, target)
        return moments
