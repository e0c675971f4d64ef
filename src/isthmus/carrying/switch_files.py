"""Files of switches."""

from pathlib import Path
from typing import Any

from torch import Tensor

from isthmus.carrying.switches import Switch
from isthmus.core.artifacts import Artifact, read_artifact, write_artifact
from isthmus.core.certificate import Certificate
from isthmus.core.errors import ArtifactError, ConfigError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, parse_sites
from isthmus.interventions.affine import AffineEdit

KIND = "switch"
_NOT_WHOLE = (KeyError, TypeError, ValueError, AttributeError, SiteError, ConfigError)
_TENSORS = ("down", "up", "mean", "bias")


def save_switch(path: Path, switch: Switch) -> None:
    """Writes a switch as an artifact folder, replacing a switch that is already there.

    Refuses a place that cannot be written to or holds something else (`OutputError`).

    Args:
        path: Folder to write.
        switch: What to write; the strength of its edits is not kept.
    """
    fields: dict[str, Any] = {
        "sites": [str(site) for site in switch.sites],
        "base": switch.base.to_json(),
        "fine_tuned": switch.fine_tuned.to_json(),
        "to": switch.to,
        "method": switch.method,
        "positions": switch.positions,
        "n_parameters": switch.n_parameters,
        "quality": dict(switch.quality),
        "provenance": switch.provenance,
        "certificate": None if switch.certificate is None else switch.certificate.to_json(),
    }
    tensors: dict[str, Tensor] = {}
    for site, edit in switch.edits.items():
        parts = {name: getattr(edit, name) for name in _TENSORS}
        tensors |= {f"{site}.{n}": part.clone() for n, part in parts.items() if part is not None}
    write_artifact(path, KIND, fields, tensors)


def load_switch(path: Path, carrier: ModelIdentity | None = None) -> Switch:
    """Reads a switch that `save_switch` wrote.

    Refuses widths that do not fit together (`ShapeError`), NaN and infinity (`NonFiniteError`) and
    a certificate about another model (`IdentityError`).

    Args:
        path: Folder to read.
        carrier: The model that it is about to be used on; any when not given.

    Returns:
        A switch with bit for bit the saved tensors.

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, or not a switch.
        IdentityError: If it belongs to another model than `carrier`.
    """
    artifact = read_artifact(path, KIND)
    fields = artifact.fields
    try:
        base = ModelIdentity.from_json(fields["base"])
        # Files of versions before certificates of switches have none.
        certificate = fields.get("certificate")
        switch = Switch(
            edits={s: _edit(artifact, s) for s in parse_sites(fields["sites"], base.n_layers)},
            base=base,
            fine_tuned=ModelIdentity.from_json(fields["fine_tuned"]),
            to=_towards(fields["to"]),
            method=fields["method"],
            positions=fields["positions"],
            quality=fields["quality"],
            provenance=fields["provenance"],
            certificate=certificate and Certificate.from_json(certificate),
        )
    except _NOT_WHOLE as error:
        raise ArtifactError(
            f"{path} is not a whole switch ({type(error).__name__}: {error}): learn it again"
        ) from error
    if carrier is not None:
        switch.require_carrier(carrier)
    return switch


def _towards(written: str) -> Any:
    if written not in {"base", "fine_tuned"}:
        raise ValueError(f"a switch to {written!r}")
    return written


def _edit(artifact: Artifact, site: Site) -> AffineEdit:
    down, mean, bias = (artifact.tensors[f"{site}.{name}"] for name in ("down", "mean", "bias"))
    return AffineEdit(down, artifact.tensors.get(f"{site}.up"), mean, bias)
