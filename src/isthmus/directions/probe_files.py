"""Files of probes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from isthmus.core.artifacts import read_artifact, write_artifact
from isthmus.core.certificate import Certificate, CertifiedNumber
from isthmus.core.errors import ArtifactError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import parse_sites
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import Probe

KIND = "probe"
_NOT_WHOLE = (KeyError, TypeError, ValueError, AttributeError, SiteError)
_TENSOR = "unit_direction"


def save_probe(path: Path, probe: ModelProbe) -> None:
    """Writes a probe as an artifact folder, replacing a probe that is already there.

    Refuses a place that cannot be written to or holds something else (`OutputError`).

    Args:
        path: Folder to write.
        probe: What to write.
    """
    fields: dict[str, Any] = {
        "sites": [str(site) for site in probe.sites],
        "model": probe.model.to_json(),
        "positions": probe.positions,
        "threshold": probe.probe.threshold,
        "held_out": {name: asdict(number) for name, number in probe.held_out.items()},
        "provenance": probe.provenance,
        "certificate": None if probe.certificate is None else probe.certificate.to_json(),
    }
    write_artifact(path, KIND, fields, {_TENSOR: probe.probe.unit_direction.clone()})


def load_probe(path: Path) -> ModelProbe:
    """Reads a probe that `save_probe` wrote.

    Refuses a direction that is not of norm 1 or does not fit the sites (`ShapeError`), a threshold
    that is not finite (`NonFiniteError`) and a certificate about another model (`IdentityError`).

    Args:
        path: Folder to read.

    Returns:
        A probe that scores bit for bit as the saved one.

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, not a probe, or not the
            one that its certificate is about.
    """
    artifact = read_artifact(path, KIND)
    fields = artifact.fields
    try:
        model = ModelIdentity.from_json(fields["model"])
        certificate = fields["certificate"]
        return ModelProbe(
            probe=Probe(artifact.tensors[_TENSOR], float(fields["threshold"])),
            sites=parse_sites(fields["sites"], model.n_layers),
            positions=str(fields["positions"]),
            model=model,
            held_out={name: CertifiedNumber(**one) for name, one in fields["held_out"].items()},
            provenance=fields["provenance"],
            certificate=certificate and Certificate.from_json(certificate),
        )
    except _NOT_WHOLE as error:
        raise ArtifactError(
            f"{path} is not a whole probe ({type(error).__name__}: {error}): learn it again"
        ) from error
