"""Files of directions."""

from pathlib import Path
from typing import Any

from isthmus.core.artifacts import Artifact, read_artifact, write_artifact
from isthmus.core.certificate import Certificate
from isthmus.core.errors import ArtifactError, DataError, FitError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, parse_sites
from isthmus.directions.direction import Direction, SiteDirection

KIND = "direction"
_NOT_WHOLE = (KeyError, TypeError, ValueError, AttributeError, SiteError, DataError, FitError)
_TENSORS = ("vectors", "positive_mean", "negative_mean", "positive_states", "negative_states")


def save_direction(path: Path, direction: Direction) -> None:
    """Writes a direction as an artifact folder, replacing a direction that is already there.

    Refuses a place that cannot be written to or holds something else (`OutputError`).

    Args:
        path: Folder to write.
        direction: What to write, states included.
    """
    certificate = None if direction.certificate is None else direction.certificate.to_json()
    fields: dict[str, Any] = {
        "sites": [str(site) for site in direction.sites],
        "model": direction.model.to_json(),
        "method": direction.method,
        "positions": direction.positions,
        "pooled": direction.pooled,
        "provenance": direction.provenance,
        "certificate": certificate,
    }
    # safetensors refuses tensors that share memory, such as means that are views of one tensor.
    tensors = {
        f"{site}.{name}": value.clone()
        for site, one in direction.by_site.items()
        for name, value in one.tensors.items()
    }
    write_artifact(path, KIND, fields, tensors)


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
    artifact = read_artifact(path, KIND)
    fields = artifact.fields
    try:
        model = ModelIdentity.from_json(fields["model"])
        sites = parse_sites(fields["sites"], model.n_layers)
        # Files of versions before certificates have none.
        certificate = fields.get("certificate")
        direction = Direction(
            by_site={site: _site_direction(artifact, site) for site in sites},
            model=model,
            method=fields["method"],
            positions=fields["positions"],
            pooled=fields["pooled"],
            provenance=fields["provenance"],
            certificate=certificate and Certificate.from_json(certificate),
        )
    except _NOT_WHOLE as error:
        raise ArtifactError(
            f"{path} is not a whole direction ({type(error).__name__}: {error}): learn it again"
        ) from error
    return direction


def _site_direction(artifact: Artifact, site: Site) -> SiteDirection:
    return SiteDirection(*(artifact.tensors[f"{site}.{name}"] for name in _TENSORS))
