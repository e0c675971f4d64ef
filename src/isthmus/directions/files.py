"""Files of directions and subspaces."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from torch import Tensor

from isthmus.core.artifacts import Artifact, read_artifact, write_artifact
from isthmus.core.certificate import Certificate
from isthmus.core.errors import ArtifactError, DataError, FitError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, parse_sites
from isthmus.directions.direction import Direction, SiteDirection
from isthmus.directions.subspace import SiteSubspace, Subspace

KIND = Direction.WHAT
SUBSPACE_KIND = Subspace.WHAT
_NOT_WHOLE = (KeyError, TypeError, ValueError, AttributeError, SiteError, DataError, FitError)
_CLASSES = ("positive_mean", "negative_mean", "positive_states", "negative_states")

L = TypeVar("L")


def save_direction(path: Path, learned: Direction | Subspace) -> None:
    """Writes a direction or a subspace as an artifact folder, replacing one of its kind.

    Refuses a place that cannot be written to or holds something else (`OutputError`).

    Args:
        path: Folder to write.
        learned: What to write, states included.
    """
    certificate = None if learned.certificate is None else learned.certificate.to_json()
    fields: dict[str, Any] = {
        "sites": [str(site) for site in learned.sites],
        "model": learned.model.to_json(),
        "method": learned.method,
        "positions": learned.positions,
        "pooled": learned.pooled,
        "provenance": learned.provenance,
        "certificate": certificate,
    }
    # safetensors refuses tensors that share memory, such as means that are views of one tensor.
    tensors = {
        f"{site}.{name}": value.clone()
        for site, one in learned.by_site.items()
        for name, value in one.tensors.items()
    }
    write_artifact(path, learned.WHAT, fields, tensors)


def load_direction(path: Path) -> Direction:
    """Reads a direction that `save_direction` wrote.

    Refuses widths that do not fit together (`ShapeError`), NaN and infinity (`NonFiniteError`), and
    a certificate about another model (`IdentityError`).

    Args:
        path: Folder to read.

    Returns:
        A direction with bit for bit the saved tensors.

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, not a direction, or not
            the one that its certificate is about.
    """
    return _direction(path, read_artifact(path, KIND))


def load_subspace(path: Path) -> Subspace:
    """Reads a subspace that `save_direction` wrote; refuses what `load_direction` refuses.

    Args:
        path: Folder to read.

    Returns:
        A subspace with bit for bit the saved tensors.

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, not a subspace, or not
            the one that its certificate is about.
    """
    return _subspace(path, read_artifact(path, SUBSPACE_KIND))


def load_direction_or_subspace(path: Path) -> Direction | Subspace:
    """Reads what `save_direction` wrote.

    Args:
        path: Folder to read.

    Returns:
        Whichever of the two it holds.

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, or something else.
    """
    artifact = read_artifact(path)
    if artifact.kind not in _READERS:
        raise ArtifactError(f"{path} is of kind {artifact.kind}, expected {' or '.join(_READERS)}")
    return _READERS[artifact.kind](path, artifact)


def _direction(path: Path, artifact: Artifact) -> Direction:
    def one(tensors: Mapping[str, Tensor]) -> SiteDirection:
        return SiteDirection(vectors=tensors["vectors"], **_classes(tensors))

    return _read(path, artifact, Direction, one)


def _subspace(path: Path, artifact: Artifact) -> Subspace:
    def one(tensors: Mapping[str, Tensor]) -> SiteSubspace:
        return SiteSubspace(basis=tensors["basis"], **_classes(tensors))

    return _read(path, artifact, Subspace, one)


_READERS: Mapping[str, Callable[[Path, Artifact], Direction | Subspace]] = MappingProxyType(
    {KIND: _direction, SUBSPACE_KIND: _subspace}
)


def _classes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in _CLASSES}


def _read(
    path: Path,
    artifact: Artifact,
    make: Callable[..., L],
    one_site: Callable[[Mapping[str, Tensor]], object],
) -> L:
    fields = artifact.fields
    try:
        model = ModelIdentity.from_json(fields["model"])
        sites = parse_sites(fields["sites"], model.n_layers)
        # Files of versions before certificates have none.
        certificate = fields.get("certificate")
        return make(
            by_site={site: one_site(_tensors_at(artifact, site)) for site in sites},
            model=model,
            method=fields["method"],
            positions=fields["positions"],
            pooled=fields["pooled"],
            provenance=fields["provenance"],
            certificate=certificate and Certificate.from_json(certificate),
        )
    except _NOT_WHOLE as error:
        raise ArtifactError(
            f"{path} is not a whole {artifact.kind} ({type(error).__name__}: {error}): "
            "learn it again"
        ) from error


def _tensors_at(artifact: Artifact, site: Site) -> dict[str, Tensor]:
    start = f"{site}."
    return {
        name.removeprefix(start): value
        for name, value in artifact.tensors.items()
        if name.startswith(start)
    }
