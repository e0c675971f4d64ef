"""Two affine maps, there and back, fitted together so that round trips return where they began.

1. Both spaces are centred and scaled to total variance 1, so that all errors are fractions.
2. With F there and B back: |x F - y|² + |y B - x|² + α (|x F B - x|² + |y B F - y|²) plus a ridge
   penalty on each is lowered by solving for F with B fixed and for B with F fixed.
3. Each half is Sxx F (I + α B Bᵀ) + (α Bᵀ Syy B + λ I) F = Sxy + α (Sxx Bᵀ + Bᵀ Syy), solved
   exactly by diagonalising both sides.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError
from isthmus.maps.base import AffineMap, affine_from_fit
from isthmus.maps.fitting import TwoWayMoments
from isthmus.maps.moments import PairMoments, require_fittable
from isthmus.maps.ridge import STRENGTHS, RidgePath, require_strengths


class BothWays(NamedTuple):
    """Two maps that were fitted together.

    Attributes:
        forward: From source to target.
        backward: From target to source.
        objective: What was lowered, before the first sweep and after each.
    """

    forward: AffineMap
    backward: AffineMap
    objective: tuple[float, ...]


@dataclass(frozen=True)
class _Problem:
    """Scatters of both spaces, divided by their totals, and the penalties."""

    source: Float[Tensor, "d_source d_source"]
    target: Float[Tensor, "d_target d_target"]
    cross: Float[Tensor, "d_source d_target"]
    penalties: tuple[float, float]
    round_trip: float

    def objective(self, there: Tensor, back: Tensor) -> float:
        halves = (
            (self.source, self.cross, self.target, there, back),
            (self.target, self.cross.T, self.source, back, there),
        )
        total = 0.0
        for (sxx, sxy, syy, f, b), penalty in zip(halves, self.penalties, strict=True):
            direct = syy.trace() - 2 * (f * sxy).sum() + (f * (sxx @ f)).sum()
            loop = f @ b - torch.eye(len(sxx), dtype=sxx.dtype, device=sxx.device)
            around = (loop * (sxx @ loop)).sum()
            total += float(direct + self.round_trip * around + penalty * f.square().sum())
        return total

    def solve_there(self, back: Tensor) -> Tensor:
        return _half(
            (self.source, self.target, self.cross), back, self.round_trip, self.penalties[0]
        )

    def solve_back(self, there: Tensor) -> Tensor:
        return _half(
            (self.target, self.source, self.cross.T), there, self.round_trip, self.penalties[1]
        )


def _half(
    scatters: tuple[Tensor, Tensor, Tensor], back: Tensor, round_trip: float, penalty: float
) -> Tensor:
    """Solves A F M + N F = C, with A = Sxx, exactly: A and N, and M, are diagonalised."""
    sxx, syy, sxy = scatters

    def eye(like: Tensor) -> Tensor:
        return torch.eye(len(like), dtype=like.dtype, device=like.device)

    m = eye(syy) + round_trip * (back @ back.T)
    n = round_trip * (back.T @ syy @ back) + penalty * eye(sxx)
    c = sxy + round_trip * (sxx @ back.T + back.T @ syy)
    lower = torch.linalg.cholesky(n)
    inner = torch.linalg.solve_triangular(lower, sxx, upper=False)
    inner = torch.linalg.solve_triangular(lower, inner.T, upper=False)
    a, basis = torch.linalg.eigh((inner + inner.T) / 2)
    left = torch.linalg.solve_triangular(lower.T, basis, upper=True)
    scale, right = torch.linalg.eigh(m)
    core = (left.T @ c @ right) / (a.clamp(min=0)[:, None] * scale + 1)
    solution: Tensor = left @ core @ right.T
    return solution


@dataclass(frozen=True)
class BidirectionalFitter:
    """Fits maps there and back with a price on round trips that do not return.

    Source: Chen, Merullo, Stolfo and Pavlick 2025, arXiv 2506.06609, who train both by gradient
    descent on the same errors; here every half-step is exact.

    Attributes:
        round_trip: Price α of round trips, at least 0; without it each map is ridge by itself.
        strengths: Candidates for the penalty of each map, relative to the mean eigenvalue of its
            source; chosen for each by itself, before the sweeps.
        n_sweeps: Most sweeps over both maps, at least 1.
        tolerance: The fit ends when a sweep lowers the objective by less than this share.

    Raises:
        ConfigError: If a number is out of range.
    """

    round_trip: float = 1.0
    strengths: tuple[float, ...] = STRENGTHS
    n_sweeps: int = 20
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        require_strengths(self.strengths)
        if not 0 <= self.round_trip < float("inf") or self.n_sweeps < 1:
            raise ConfigError(
                f"round_trip {self.round_trip} must be finite and not below 0, and "
                f"{self.n_sweeps} sweeps at least 1"
            )

    def fit(self, train: TwoWayMoments, selection: TwoWayMoments) -> AffineMap:
        """Returns the map there; `fit_both` gives both.

        Args:
            train: Moments of the training pairs, both ways.
            selection: Moments of other pairs, by which the strengths are chosen.

        Returns:
            A float32 map whose `details` hold both strengths and the number of sweeps.

        Raises:
            FitError: If there are fewer than two pairs on a side or one side never varies.
        """
        return self.fit_both(train, selection).forward

    def fit_both(self, train: TwoWayMoments, selection: TwoWayMoments) -> BothWays:
        """Returns both maps.

        Args:
            train: Moments of the training pairs, both ways.
            selection: Moments of other pairs, by which the strengths are chosen.

        Returns:
            The maps and how the objective fell.

        Raises:
            FitError: If there are fewer than two pairs on a side or one side never varies.
        """
        ways = [_scaled(train.there), _scaled(train.back)]
        others = [
            moments.scaled(*_scales(fitted))
            for moments, fitted in (
                (selection.there, train.there),
                (selection.back, train.back),
            )
        ]
        chosen = [
            RidgePath(way).best_on(other, self.strengths)
            for way, other in zip(ways, others, strict=True)
        ]
        penalties = [
            one.strength * float(way.source_scatter.diagonal().mean())
            for one, way in zip(chosen, ways, strict=True)
        ]
        problem = _Problem(
            ways[0].source_scatter,
            ways[1].source_scatter,
            ways[0].cross_scatter,
            (penalties[0], penalties[1]),
            self.round_trip,
        )
        there, back = chosen[0].weight, chosen[1].weight
        objective = [problem.objective(there, back)]
        for _ in range(self.n_sweeps):
            there = problem.solve_there(back)
            back = problem.solve_back(there)
            objective.append(problem.objective(there, back))
            if objective[-2] - objective[-1] <= self.tolerance * objective[-2]:
                break
        details = {
            "strength": chosen[0].strength,
            "strength_back": chosen[1].strength,
            "sweeps": float(len(objective) - 1),
        }
        forward = _frozen(there, train.there, details)
        backward = _frozen(back, train.back, details)
        return BothWays(forward, backward, tuple(objective))


def _scales(moments: PairMoments) -> tuple[Tensor, Tensor]:
    """Divisors that bring each side to total variance 1, over all pairs together."""
    totals = (moments.source_scatter.diagonal().sum(), moments.target_total)
    return (
        totals[0].sqrt().expand(moments.d_source),
        totals[1].sqrt().expand(moments.d_target),
    )


def _scaled(moments: PairMoments) -> PairMoments:
    require_fittable(moments, "a bidirectional map")
    return moments.scaled(*_scales(moments))


def _frozen(weight: Tensor, moments: PairMoments, details: dict[str, float]) -> AffineMap:
    source_scale, target_scale = (float(scale[0]) for scale in _scales(moments))
    return affine_from_fit(
        weight * (target_scale / source_scale),
        moments.source_mean,
        moments.target_mean,
        "bidirectional",
        details,
    )
