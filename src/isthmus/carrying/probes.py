"""Probes carried from the source model to the target model without a label of the target.

1. Pulled back: a map from target to source takes states to where the probe reads them. Through an
   affine map that is again a probe, of the target's states.
2. Pushed forward: the probe's direction goes through the linear part of a map from source to
   target, its threshold with a point on the boundary. What a direction *is* travels so, not what it
   *reads*: the two agree only where the map is orthogonal up to a scale.
3. The threshold can be set again from the target's scores on unlabelled texts alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, DataError, FitError, ShapeError
from isthmus.directions.probe import Probe
from isthmus.maps.base import AffineMap

_ROUNDING = 1e-5
"""Share of the length of a state by which a float32 score may be off."""


def pull_back_probe(probe: Probe, target_to_source: AffineMap) -> Probe:
    """Returns the probe of target states that decides as `probe` does on their images.

    With the map f(y) = (y - ȳ) A + x̄, f(y) · u - t = y · (A u) - (ȳ · A u - x̄ · u + t); both are
    divided by |A u|, which changes no decision and no ranking.

    Args:
        probe: Probe of source states.
        target_to_source: Affine map from target states to source states.

    Returns:
        Probe of target states.

    Raises:
        ShapeError: If the map does not lead to the probe's space.
        FitError: If the map cuts off all that the probe reads.
    """
    _require_width(probe, target_to_source.d_target, "the map's output")
    unit = probe.unit_direction.double()
    weight = target_to_source.weight.to(unit)
    along = weight @ unit
    start = target_to_source.source_mean.to(unit) @ along
    reached = target_to_source.target_mean.to(unit) @ unit
    return _scaled(along, start - reached + probe.threshold)


def push_forward_probe(probe: Probe, source_to_target: AffineMap) -> Probe:
    """Returns a probe along the image of the probe's direction: v = u A, t' = f(p) · v / |v|.

    p = x̄ + (t - x̄ · u) u is the point on the probe's boundary nearest to the map's source mean x̄.

    Args:
        probe: Probe of source states.
        source_to_target: Affine map from source states to target states.

    Returns:
        Probe of target states.

    Raises:
        ShapeError: If the map does not start in the probe's space.
        FitError: If the image of the direction is zero.
    """
    _require_width(probe, source_to_target.d_source, "the map's input")
    unit = probe.unit_direction.double()
    mean = source_to_target.source_mean.to(unit)
    on_boundary = mean + (probe.threshold - mean @ unit) * unit
    along = source_to_target.linear(unit)
    return _scaled(along, source_to_target(on_boundary) @ along)


def with_positive_share(
    probe: Probe, unlabelled: Float[Tensor, "state d_model"], share: float
) -> Probe:
    """Moves the threshold so that a given share of unlabelled states lies on the positive side.

    The new threshold is the (1 - share) quantile of the coordinates along the probe; for a share of
    1 it is a little lower, for 0 a little higher. Where several states have the coordinate of the
    quantile, fewer than the share lie above it.

    Args:
        probe: Probe of these states' space; left unchanged.
        unlabelled: States whose classes nobody knows, mixed as where the probe will be used.
        share: Share of positive ones, such as the source's own probe finds on the same texts; from
            0 to 1.

    Returns:
        A probe with the same direction.

    Raises:
        DataError: If there are fewer than two states.
        ConfigError: If the share is not from 0 to 1.
    """
    if len(unlabelled) < 2:
        raise DataError(f"{len(unlabelled)} unlabelled states: expected at least 2, better 100")
    require_share(share)
    along = unlabelled.double() @ probe.unit_direction.to(unlabelled.device).double()
    threshold = torch.quantile(along, 1 - share)
    if share in (0, 1):
        # The highest and the lowest of all lie at these quantiles, or beside them by rounding.
        beside = _ROUNDING * torch.linalg.vector_norm(unlabelled.double(), dim=-1).max()
        threshold += beside if share == 0 else -beside
    return Probe(probe.unit_direction, float(threshold))


def require_share(share: float) -> None:
    """Refuses a share of positive states that is not from 0 to 1 (`ConfigError`)."""
    if not 0 <= share <= 1:
        raise ConfigError(f"a share of {share} positive states: expected 0 to 1")


def random_map_like(fitted: AffineMap, generator: torch.Generator) -> AffineMap:
    """Draws a control: a Gaussian weight as large as the map's, with the map's means.

    Args:
        fitted: What to be like; left unchanged.
        generator: Source of randomness, on any device.

    Returns:
        A map with method `random`.
    """
    drawn = torch.randn(fitted.weight.shape, generator=generator, device=generator.device)
    drawn = drawn.to(fitted.weight) * (fitted.weight.norm() / drawn.norm())
    return AffineMap(drawn, fitted.source_mean, fitted.target_mean, "random")


def random_rotation_like(fitted: AffineMap, generator: torch.Generator) -> AffineMap:
    """Draws a control: a random orthogonal map as large as the map, with the map's means.

    Uniform over orthogonal matrices, or over those with orthonormal rows or columns where the
    widths differ: a Procrustes map that learned nothing but means and scale.

    Args:
        fitted: What to be like; left unchanged.
        generator: Source of randomness, on any device.

    Returns:
        A map with method `random_procrustes`.
    """
    drawn = torch.randn(fitted.weight.shape, generator=generator, device=generator.device)
    left, _, right = torch.linalg.svd(drawn.double(), full_matrices=False)
    rotation = (left @ right).to(fitted.weight)
    rotation = rotation * (fitted.weight.norm() / rotation.norm())
    return AffineMap(rotation, fitted.source_mean, fitted.target_mean, "random_procrustes")


def _require_width(probe: Probe, width: int, what: str) -> None:
    given = probe.unit_direction.shape[0]
    if given != width:
        raise ShapeError(
            f"a probe of width {given} does not fit {what} of width {width}: take the map between "
            "the sites of the probe and of the target"
        )


def _scaled(along: Tensor, offset: Tensor) -> Probe:
    norm = along.norm()
    if not bool(norm > 0):
        raise FitError("the map takes the probe's direction to zero: fit it on other texts")
    return Probe((along / norm).float(), float(offset / norm))
