"""Fitted maps with the models and sites they belong to, and their files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from isthmus.core.artifacts import Artifact, read_artifact, write_artifact
from isthmus.core.errors import ArtifactError, ShapeError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, parse_site, parse_sites
from isthmus.maps.autoencoder import AutoencoderMap
from isthmus.maps.base import ActivationMap, AffineMap, MapQuality
from isthmus.maps.kernel import KernelMap
from isthmus.maps.residual import ResidualMap

KIND = "activation_map"
_AFFINE = ("weight", "source_mean", "target_mean")
_AUTOENCODER = (
    "source_mean",
    "encoder_weight",
    "encoder_bias",
    "decoder_weight",
    "decoder_bias",
)
_KERNEL = ("source_mean", "source_scale", "landmarks", "coefficients", "offset")


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A map with everything that decides where it may be used.

    Attributes:
        map: Takes the activations of all source sites, concatenated in the order of
            `source_sites`; returns activations of the target site, or of all target sites side by
            side.
        source: Model whose activations it takes.
        target: Model whose activations it returns.
        source_sites: Where its input is read; each gives `source.d_model` coordinates.
        target_site: Where its output, or the first part of it, belongs.
        quality: Held-out quality.
        provenance: JSON values: corpus, pairing, seeds, numbers that the fit chose.
        further_target_sites: Where the other parts of its output belong, in this order.

    Raises:
        SiteError: If a model does not have a site, or no source site or a repeated one is given.
        ShapeError: If the widths of the map do not fit models and sites.
    """

    map: ActivationMap
    source: ModelIdentity
    target: ModelIdentity
    source_sites: tuple[Site, ...]
    target_site: Site
    quality: MapQuality
    provenance: dict[str, Any] = field(default_factory=dict)
    further_target_sites: tuple[Site, ...] = ()

    @property
    def target_sites(self) -> tuple[Site, ...]:
        """Every target site, in the order of the map's output."""
        return (self.target_site, *self.further_target_sites)

    def __post_init__(self) -> None:
        parse_sites(self.source_sites, self.source.n_layers)
        parse_sites(self.target_sites, self.target.n_layers)
        widths = (self.source.d_model, self.target.d_model)
        expected = (len(self.source_sites) * widths[0], len(self.target_sites) * widths[1])
        given = (self.map.d_source, self.map.d_target)
        if given != expected:
            raise ShapeError(
                f"a map {given[0]} → {given[1]} does not fit {len(self.source_sites)} site(s) of "
                f"{self.source} and {len(self.target_sites)} of {self.target}, which need "
                f"{expected[0]} → {expected[1]}: fit it on these sites"
            )


def save_map(path: Path, fitted: FittedMap) -> None:
    """Writes a fitted map as an artifact folder, replacing a map that is already there.

    Refuses a place that cannot be written to or holds something else (`OutputError`), and a map of
    a type that has no file format (`ArtifactError`).

    Args:
        path: Folder to write.
        fitted: The map; affine, an autoencoder, a kernel map or a residual map.
    """
    form, details, parts = _form(fitted.map)
    fields = {
        "form": form,
        "method": fitted.map.method,
        "details": details,
        "source": fitted.source.to_json(),
        "target": fitted.target.to_json(),
        "source_sites": [str(site) for site in fitted.source_sites],
        "target_site": str(fitted.target_site),
        "further_target_sites": [str(site) for site in fitted.further_target_sites],
        "quality": fitted.quality.to_json(),
        "provenance": fitted.provenance,
    }
    # safetensors refuses tensors that share memory, such as one zero vector used for both means.
    write_artifact(path, KIND, fields, {name: value.clone() for name, value in parts.items()})


def load_map(path: Path) -> FittedMap:
    """Reads a fitted map that `save_map` wrote.

    Refuses widths that do not fit together (`ShapeError`), NaN and infinity (`NonFiniteError`).

    Args:
        path: Folder to read.

    Returns:
        A map that gives bit for bit the images that the saved one gave.

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, or not a map.
    """
    artifact = read_artifact(path, KIND)
    fields = artifact.fields
    try:
        source = ModelIdentity.from_json(fields["source"])
        target = ModelIdentity.from_json(fields["target"])
        # Maps written before they could lead to several sites do not have the field.
        further = fields.get("further_target_sites", [])
        return FittedMap(
            map=_read_form(artifact),
            source=source,
            target=target,
            source_sites=parse_sites(fields["source_sites"], source.n_layers),
            target_site=parse_site(fields["target_site"], target.n_layers),
            quality=MapQuality(**fields["quality"]),
            provenance=fields["provenance"],
            further_target_sites=tuple(parse_site(one, target.n_layers) for one in further),
        )
    except (KeyError, TypeError, ValueError, SiteError) as error:
        raise ArtifactError(
            f"{path} is not a whole activation map ({type(error).__name__}: {error}): "
            "learn it again"
        ) from error


def _form(fitted: ActivationMap) -> tuple[str, dict[str, float], dict[str, Tensor]]:
    if isinstance(fitted, AffineMap):
        return "affine", dict(fitted.details), _named(fitted, _AFFINE)
    if isinstance(fitted, AutoencoderMap):
        return "autoencoder", {}, _named(fitted, _AUTOENCODER)
    if isinstance(fitted, KernelMap):
        details = {**fitted.details, "gamma": fitted.gamma}
        return "kernel", details, _named(fitted, _KERNEL)
    if isinstance(fitted, ResidualMap):
        parts = {
            f"affine.{name}": value for name, value in _named(fitted.affine, _AFFINE).items()
        } | {
            f"correction.{name}": value
            for name, value in _named(fitted.correction, _AUTOENCODER).items()
        }
        return "residual", dict(fitted.affine.details), parts
    raise ArtifactError(
        f"a {type(fitted).__name__} has no file format: save an affine map, an autoencoder, a "
        "kernel map or a residual map"
    )


def _named(fitted: object, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: getattr(fitted, name) for name in names}


def _read_form(artifact: Artifact) -> ActivationMap:
    form, method = artifact.fields["form"], artifact.fields["method"]
    details, tensors = artifact.fields["details"], artifact.tensors
    if form == "affine":
        return _read_affine(tensors, method, details)
    if form == "autoencoder":
        return _read_autoencoder(tensors, method)
    if form == "kernel":
        named: dict[str, Any] = {name: tensors[name] for name in _KERNEL}
        rest = {name: value for name, value in details.items() if name != "gamma"}
        return KernelMap(**named, gamma=details["gamma"], method=method, details=rest)
    if form == "residual":
        parts = {
            prefix: {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            for prefix in ("affine.", "correction.")
        }
        affine = _read_affine(parts["affine."], "ridge", details)
        return ResidualMap(affine, _read_autoencoder(parts["correction."], "autoencoder"), method)
    raise ValueError(f"no form of map {form!r}")


def _read_affine(
    tensors: Mapping[str, Tensor], method: str, details: Mapping[str, float]
) -> AffineMap:
    weight, source_mean, target_mean = (tensors[name] for name in _AFFINE)
    return AffineMap(weight, source_mean, target_mean, method, details)


def _read_autoencoder(tensors: Mapping[str, Tensor], method: str) -> AutoencoderMap:
    named: dict[str, Any] = {name: tensors[name] for name in _AUTOENCODER}
    return AutoencoderMap(**named, method=method)
