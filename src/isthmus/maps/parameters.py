"""What training may change of a fitted map, and the map with changed values in their place."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from isthmus.core.errors import ConfigError
from isthmus.maps.autoencoder import AutoencoderMap
from isthmus.maps.base import ActivationMap, AffineMap
from isthmus.maps.kernel import KernelMap
from isthmus.maps.residual import ResidualMap

_LAYERS = ("encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias")


def parameters_of(fitted: ActivationMap) -> dict[str, Tensor]:
    """Returns the tensors of a map that training may change, by name.

    Centres, scales and landmarks of the source are left out: what they do, the others can do.

    Args:
        fitted: An affine map, an autoencoder, a kernel map or a residual map.

    Returns:
        The map's own tensors.

    Raises:
        ConfigError: If a map of this type has none.
    """
    if isinstance(fitted, ResidualMap):
        parts = (("affine", fitted.affine), ("correction", fitted.correction))
        return {
            f"{prefix}.{name}": value
            for prefix, part in parts
            for name, value in parameters_of(part).items()
        }
    return {name: getattr(fitted, name) for name in _names(fitted)}


def with_parameters(fitted: ActivationMap, values: Mapping[str, Tensor]) -> ActivationMap:
    """Returns a map of the same kind with other values; gradients reach them through its images.

    Args:
        fitted: The map; left unchanged.
        values: What `parameters_of` returned, changed.

    Returns:
        A map that shares memory with the values.

    Raises:
        ConfigError: If a map of this type has none.
    """
    if isinstance(fitted, ResidualMap):
        affine, correction = (
            with_parameters(part, _below(prefix, values))
            for prefix, part in (("affine.", fitted.affine), ("correction.", fitted.correction))
        )
        changed: dict[str, Any] = {"affine": affine, "correction": correction}
        return replace(fitted, **changed)
    named: dict[str, Any] = {name: values[name] for name in _names(fitted)}
    # The protocol does not say that maps are dataclasses; those with names here are.
    made: Any = fitted
    return replace(made, **named)  # type: ignore[no-any-return]


def _names(fitted: ActivationMap) -> tuple[str, ...]:
    if isinstance(fitted, AffineMap):
        return ("weight", "target_mean")
    if isinstance(fitted, AutoencoderMap):
        return _LAYERS
    if isinstance(fitted, KernelMap):
        return ("coefficients", "offset")
    raise ConfigError(
        f"a {type(fitted).__name__} has nothing to train: use an affine map, an autoencoder, a "
        "kernel map or a residual map"
    )


def _below(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }
