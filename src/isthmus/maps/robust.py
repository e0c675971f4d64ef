"""Ridge maps that a few huge activations do not decide.

1. Clipping draws rows that lie further from the median than a multiple of the median distance back
   to that distance, on each side by itself, and then fits ridge on them.
2. Trimming leaves such rows out altogether, which clipping cannot replace where they all lie in one
   direction, as attention sinks do: a sink drawn back still speaks for that direction alone.
3. Huber's loss counts an error squared up to a threshold and linearly beyond it: pairs are
   weighted by min(1, threshold / error), the map is fitted again, and so on.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps.base import AffineMap, affine_from_fit, require_finite_rows
from isthmus.maps.fitting import OnStep, no_step
from isthmus.maps.moments import PairMoments, require_fittable
from isthmus.maps.ridge import STRENGTHS, RidgeFitter, RidgePath, require_strengths
from isthmus.maps.rows import PairedRows

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class NormClip:
    """Draws rows back to a ball, x ↦ centre + (x - centre) · min(1, radius / |x - centre|).

    Made from a sample of rows it clips a stream of others, which moments then take.

    Attributes:
        centre: Middle of the ball, float64.
        radius: Its radius.
    """

    centre: Float[Tensor, " d_model"]
    radius: float

    @classmethod
    def of(cls, rows: Float[Tensor, "row d_model"], factor: float) -> "NormClip":
        """Measures where the rows lie.

        Args:
            rows: A sample; left unchanged.
            factor: Radius in units of the median distance from the centre.

        Returns:
            A ball round the median of every coordinate.
        """
        centre = rows.detach().double().median(0).values
        distances = torch.cat(
            [(part.double() - centre).norm(dim=1) for part in rows.split(_ROWS_AT_ONCE)]
        )
        return cls(centre, factor * float(distances.median()))

    def __call__(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """Returns the rows, those outside the ball on its surface, in float64."""
        away = rows.double() - self.centre.to(rows.device)
        # A row at the centre has distance 0 and stays there.
        distance = away.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        clipped = self.centre.to(rows.device) + away * (self.radius / distance)
        return torch.where(distance > self.radius, clipped, rows.double())

    def holds(self, rows: Float[Tensor, "row d_model"]) -> Bool[Tensor, " row"]:
        """Says which rows lie in the ball."""
        centre = self.centre.to(rows.device)
        inside = [(part.double() - centre).norm(dim=1) for part in rows.split(_ROWS_AT_ONCE)]
        return torch.cat(inside) <= self.radius


@dataclass(frozen=True)
class ClippedRidgeFitter:
    """Fits ridge on rows that were drawn back to a ball on each side.

    Attributes:
        factor: Radius of the balls in units of the median distance from the median; above 0.
        strengths: Candidates, relative to the mean eigenvalue of Sxx; finite and above 0.

    Raises:
        ConfigError: If a number is out of range.
    """

    factor: float = 2.0
    strengths: tuple[float, ...] = STRENGTHS

    def __post_init__(self) -> None:
        _require("clipping", self.factor, self.strengths)

    def fit(
        self,
        train: PairedRows,
        selection: PairedRows,
        _generator: torch.Generator | None = None,
        _on_step: OnStep = no_step,
    ) -> AffineMap:
        """Returns the map whose strength does best on the selection pairs, clipped alike.

        Args:
            train: Training pairs; the balls are measured on them.
            selection: Other pairs, by which the strength is chosen.
            _generator: Not needed: nothing is random.
            _on_step: Never called: there are no steps.

        Returns:
            A float32 map whose `details` hold the chosen strength and the share of clipped pairs.

        Raises:
            FitError: If there are fewer than two pairs on a side or activations never vary.
        """
        clips = NormClip.of(train.source, self.factor), NormClip.of(train.target, self.factor)
        moments = [_clipped(rows, clips) for rows in (train, selection)]
        made = RidgeFitter(self.strengths).fit(*moments)
        details = {**made.details, "clipped": 1 - float(_inside(train, clips).double().mean())}
        return replace(made, method="ridge_clipped", details=details)


@dataclass(frozen=True)
class TrimmedRidgeFitter:
    """Fits ridge on the pairs of which neither row lies far out.

    Attributes:
        factor: Furthest that a row may lie from the median of its side, in units of the median
            distance; above 0.
        strengths: Candidates, relative to the mean eigenvalue of Sxx; finite and above 0.

    Raises:
        ConfigError: If a number is out of range.
    """

    factor: float = 4.0
    strengths: tuple[float, ...] = STRENGTHS

    def __post_init__(self) -> None:
        _require("trimming", self.factor, self.strengths)

    def fit(
        self,
        train: PairedRows,
        selection: PairedRows,
        _generator: torch.Generator | None = None,
        _on_step: OnStep = no_step,
    ) -> AffineMap:
        """Returns the map whose strength does best on the selection pairs, trimmed alike.

        Args:
            train: Training pairs; what is far out is measured on them.
            selection: Other pairs, by which the strength is chosen.
            _generator: Not needed: nothing is random.
            _on_step: Never called: there are no steps.

        Returns:
            A float32 map whose `details` hold the chosen strength and the share of pairs left out.

        Raises:
            FitError: If there are fewer than two pairs left on a side or activations never vary.
            NonFiniteError: If an activation is NaN or infinite.
        """
        for rows in (train, selection):
            require_finite_rows(rows.source, rows.target)
        if len(train.source) < 2:
            raise FitError(
                f"a trimmed ridge map needs at least 2 pairs, got {len(train.source)}: give it "
                "more texts"
            )
        clips = NormClip.of(train.source, self.factor), NormClip.of(train.target, self.factor)
        kept = [_inside(rows, clips) for rows in (train, selection)]
        moments = [
            PairedRows(rows.source[one], rows.target[one]).moments
            for rows, one in zip((train, selection), kept, strict=True)
        ]
        made = RidgeFitter(self.strengths).fit(*moments)
        details = {**made.details, "left_out": 1 - float(kept[0].double().mean())}
        return replace(made, method="ridge_trimmed", details=details)


def _require(what: str, factor: float, strengths: tuple[float, ...]) -> None:
    require_strengths(strengths)
    if not 0 < factor < float("inf"):
        raise ConfigError(f"{what} factor {factor} must be finite and above 0")


def _inside(rows: PairedRows, clips: tuple[NormClip, NormClip]) -> Bool[Tensor, " row"]:
    return clips[0].holds(rows.source) & clips[1].holds(rows.target)


def _clipped(rows: PairedRows, clips: tuple[NormClip, NormClip]) -> PairMoments:
    moments = PairMoments(rows.source.shape[1], rows.target.shape[1])
    pieces = zip(rows.source.split(_ROWS_AT_ONCE), rows.target.split(_ROWS_AT_ONCE), strict=True)
    for x, y in pieces:
        moments.update(clips[0](x), clips[1](y))
    return moments


def weighted_moments(rows: PairedRows, weights: Float[Tensor, " row"]) -> PairMoments:
    """Computes moments in which some pairs count less than others.

    Args:
        rows: Pairs; left unchanged.
        weights: How much each counts, not negative and not all zero.

    Returns:
        Weighted means, and scatters of weights whose mean is 1, as `n` counts the pairs.
    """
    zero = PairMoments(rows.d_source, rows.d_target)
    means = [zero.source_mean, zero.target_mean]
    sums = [zero.source_scatter, zero.cross_scatter, zero.target_scatter]
    w = weights.double() / weights.double().mean()
    total = w.sum()
    pieces = list(
        zip(*(part.split(_ROWS_AT_ONCE) for part in (rows.source, rows.target, w)), strict=True)
    )
    for x, y, some in pieces:
        means[0] += some @ x.double() / total
        means[1] += some @ y.double() / total
    for x, y, some in pieces:
        dx, dy = x.double() - means[0], y.double() - means[1]
        weighted = (dx * some[:, None]).T
        sums[0].addmm_(weighted, dx)
        sums[1].addmm_(weighted, dy)
        sums[2] += some @ dy.square()
    return PairMoments.of_sums(len(weights), (means[0], means[1]), (sums[0], sums[1], sums[2]))


@dataclass(frozen=True)
class HuberRidgeFitter:
    """Fits ridge under Huber's loss of the length of a pair's error, by reweighting.

    Lowers Σ ρ(|y - f(x)|) + λ |W|² with ρ(r) = r² up to the threshold t and 2 t r - t² beyond.
    The threshold is a multiple of the median error of the plain ridge map and then stays.

    Source: Huber 1964, "Robust estimation of a location parameter"; Holland and Welsch 1977 for
    the reweighting.

    Attributes:
        factor: Threshold in units of the median error; above 0.
        strengths: Candidates, relative to the mean eigenvalue of the weighted Sxx.
        n_passes: Most rounds of reweighting, at least 1.
        tolerance: The fit ends when a round moves the map by less than this share of its size.

    Raises:
        ConfigError: If a number is out of range.
    """

    factor: float = 2.0
    strengths: tuple[float, ...] = STRENGTHS
    n_passes: int = 10
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        require_strengths(self.strengths)
        if not 0 < self.factor < float("inf") or self.n_passes < 1:
            raise ConfigError(
                f"Huber factor {self.factor} must be finite and above 0, and {self.n_passes} "
                "passes at least 1"
            )

    def fit(
        self,
        train: PairedRows,
        selection: PairedRows,
        _generator: torch.Generator | None = None,
        on_step: OnStep = no_step,
    ) -> AffineMap:
        """Returns the map whose strength does best on selection pairs that are weighted alike.

        Args:
            train: Training pairs, read once per pass.
            selection: Other pairs, by which the strength is chosen.
            _generator: Not needed: nothing is random.
            on_step: Told of every pass and of the mean loss before it.

        Returns:
            A float32 map whose `details` hold the chosen strength, the threshold and the share of
            pairs that count less than fully.

        Raises:
            FitError: If there are fewer than two pairs on a side or activations never vary.
        """
        moments = [rows.moments for rows in (train, selection)]
        require_fittable(moments[0], "a robust ridge map")
        strength, weight = RidgePath(moments[0]).best_on(moments[1], self.strengths)
        errors = _errors(train, moments[0], weight)
        threshold = self.factor * float(errors.median())
        for step in range(self.n_passes):
            weights = [
                _huber_weights(_errors(rows, moments[0], weight), threshold)
                for rows in (train, selection)
            ]
            on_step(step + 1, _mean_loss(_errors(train, moments[0], weight), threshold))
            moments = [
                weighted_moments(rows, some)
                for rows, some in zip((train, selection), weights, strict=True)
            ]
            before = weight
            strength, weight = RidgePath(moments[0]).best_on(moments[1], self.strengths)
            if float((weight - before).norm()) <= self.tolerance * float(weight.norm()):
                break
        less = _huber_weights(_errors(train, moments[0], weight), threshold) < 1
        details = {
            "strength": strength,
            "threshold": threshold,
            "downweighted": float(less.double().mean()),
        }
        means = moments[0].source_mean, moments[0].target_mean
        return affine_from_fit(weight, *means, "ridge_huber", details)


def _errors(
    rows: PairedRows, moments: PairMoments, weight: Float[Tensor, "d_source d_target"]
) -> Float[Tensor, " row"]:
    pieces = zip(rows.source.split(_ROWS_AT_ONCE), rows.target.split(_ROWS_AT_ONCE), strict=True)
    return torch.cat(
        [
            (y.double() - moments.target_mean - (x.double() - moments.source_mean) @ weight).norm(
                dim=1
            )
            for x, y in pieces
        ]
    )


def _huber_weights(errors: Float[Tensor, " row"], threshold: float) -> Float[Tensor, " row"]:
    # A perfect map has errors and a threshold of 0: then every pair counts.
    return torch.where(errors > threshold, threshold / errors, torch.ones_like(errors)).clamp(
        min=torch.finfo(torch.float64).tiny
    )


def _mean_loss(errors: Float[Tensor, " row"], threshold: float) -> float:
    beyond = 2 * threshold * errors - threshold**2
    return float(torch.where(errors > threshold, beyond, errors.square()).mean())
